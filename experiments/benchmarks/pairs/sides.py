"""Both sides of a pair, ready to run: logits at a rate, and a step over several."""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

import mslice_jax as ms
from mslice_jax.train import TrainState, make_train_step, sgd
from mslice_jax.train import step as step_module

from .pair import RATES, Pair

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
_SGD = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}


class Ours:
    """The network sliced by this project, compiled for each rate.

    On a GPU it computes in bfloat16, with float32 weights.

    Args:
      pair: of which.
      net: its network.
      jit: `ms.jit` or `jax.jit`.
      compiler_options: of inference.
    """

    def __init__(
        self,
        pair: Pair,
        net: Any,
        jit: Callable[..., Any],
        compiler_options: Mapping[str, Any] | None = None,
    ):
        self._pair = pair
        self._on_gpu = jax.default_backend() == "gpu"
        optimizer = sgd(LEARNING_RATE, **_SGD)
        dtype = jnp.bfloat16 if self._on_gpu else None
        with mock.patch.object(step_module, "jit", jit):
            self._step = make_train_step(optimizer, task=pair.task, compute_dtype=dtype)
        self._batch = pair.inputs(pair.batch), pair.targets(pair.batch)
        net = jax.tree.map(jnp.copy, net)  # a step uses it up
        self._state = TrainState.create(net, optimizer, key=jax.random.key(2))
        options = dict(compiler_options) if compiler_options else None
        self._apply = jit(ms.slice_apply, static_argnums=2, compiler_options=options)
        self._small = {rate: self._cast(ms.extract(net, rate)) for rate in RATES}
        self._inputs: dict[int, Any] = {}

    def logits(self, rate: float, batch: int) -> jax.Array:
        """(b, ..., classes)."""
        if batch not in self._inputs:
            self._inputs[batch] = self._cast(self._pair.inputs(batch))
        y = self._apply(self._small[rate], self._inputs[batch], rate)
        return jax.block_until_ready(y)

    def step(self, rates: tuple[float, ...]) -> dict[float, float]:
        """One step; the loss of each rate."""
        self._state, metrics = self._step(self._state, self._batch, rates)
        jax.block_until_ready(self._state)
        return {rate: float(metrics[rate]["loss"]) for rate in rates}

    def _cast(self, tree: Any) -> Any:
        if not self._on_gpu:
            return tree
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree
        )


class Theirs:
    """The network sliced in PyTorch by hand.

    On a GPU it is compiled, and computes in bfloat16 by autocast.

    Args:
      pair: of which.
      net: our network, whose weights it takes.
      memory_format: of images.
    """

    def __init__(self, pair: Pair, net: Any, memory_format: Any):
        self._pair, self._format = pair, memory_format
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._autocast = torch.autocast(
            self._device, dtype=torch.bfloat16, enabled=self._device == "cuda"
        )
        self._modules = {
            rate: self._placed(pair.module(net, rate)).eval() for rate in RATES
        }
        # A narrow module for each rate, which reads cuts of the wide one's tensors.
        self._wide = self._placed(pair.module(net, 1.0)).train()
        self._cut = {
            rate: self._placed(pair.module(net, rate)).train() for rate in RATES
        }
        self._cuts = {rate: pair.cuts(net, rate) for rate in RATES}
        learned = [p for p in self._wide.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            learned, lr=LEARNING_RATE, nesterov=True, **_SGD
        )
        self._loss = self._compiled(self._loss_at)
        self._forward = self._compiled(lambda x, rate: self._modules[rate](x))
        self._inputs: dict[int, Any] = {}
        targets = torch.from_numpy(np.array(pair.targets(pair.batch))).long()
        self._targets = targets.to(self._device)

    @torch.inference_mode()
    def logits(self, rate: float, batch: int) -> np.ndarray:
        """(b, ..., classes)."""
        with self._autocast:
            y = self._forward(self._input(batch), rate)
        self._wait()
        # Inside of the measurement, but nothing is copied on CPU.
        y = y.float().cpu().numpy()
        return np.moveaxis(y, 1, -1) if y.ndim == 4 else y

    def step(self, rates: tuple[float, ...]) -> dict[float, float]:
        """One step; the loss of each rate."""
        self._optimizer.zero_grad()
        losses = {}
        x = self._input(self._pair.batch)
        for rate in rates:
            loss = self._loss(x, rate)
            loss.backward()
            losses[rate] = loss.detach()
        self._optimizer.step()
        self._wait()
        return {rate: float(loss) for rate, loss in losses.items()}

    def _loss_at(self, x: Any, rate: float) -> Any:
        tensors = dict(self._wide.named_parameters())
        tensors |= self._wide.named_buffers()
        cuts = {name: cut(tensors[name]) for name, cut in self._cuts[rate].items()}
        with self._autocast:
            y = torch.func.functional_call(self._cut[rate], cuts, (x,))
            if self._pair.images:
                return torch.nn.functional.cross_entropy(y.float(), self._targets)
            # Rows of a matrix: classes on the second axis would have to be moved.
            rows = y.float().flatten(0, 1), self._targets.flatten()
            return torch.nn.functional.cross_entropy(*rows)

    @torch.inference_mode(False)
    def _input(self, batch: int) -> Any:
        if batch not in self._inputs:
            x = torch.from_numpy(np.array(self._pair.inputs(batch)))
            x = x.permute(0, 3, 1, 2) if self._pair.images else x.long()
            self._inputs[batch] = self._placed(x)
        return self._inputs[batch]

    def _placed(self, x: Any) -> Any:
        x = x.to(self._device)
        if self._pair.images:
            x = x.to(memory_format=self._format)
        if isinstance(x, torch.Tensor):
            x = x.contiguous(
                memory_format=self._format
                if self._pair.images
                else torch.contiguous_format
            )
        return x

    def _compiled(self, function: Any) -> Any:
        on_gpu = self._device == "cuda"
        return torch.compile(function, dynamic=False) if on_gpu else function

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def agree(ours: Ours, theirs: Theirs, batch: int = 1, steps: int = 2) -> None:
    """Raises AssertionError unless logits at every rate and losses of steps agree.

    Args:
      ours: compiled.
      theirs: with the same weights, as many steps behind it.
      batch: examples of which logits are compared.
      steps: over all rates; the second one sees the first one's update.
    """
    # bfloat16 has eight bits.
    tolerance = 1e-3 if jax.default_backend() == "cpu" else 0.1
    for rate in RATES:
        mine = np.asarray(ours.logits(rate, batch), np.float32)
        scale = np.abs(mine).max()
        np.testing.assert_allclose(
            mine / scale, theirs.logits(rate, batch) / scale, atol=tolerance
        )
        assert scale > tolerance
    for number in range(steps):
        losses = ours.step(RATES), theirs.step(RATES)
        # An update of a deep network with batch norms makes much of its rounding.
        rtol = tolerance if number == 0 else 5 * tolerance
        for rate in RATES:
            np.testing.assert_allclose(*(x[rate] for x in losses), rtol=rtol)
