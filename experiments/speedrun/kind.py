"""Images of the speed run: whitened, shifted on the host, seen from several sides."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.train import Batch

from .. import auxiliary, inputs
from ..images import Images
from ..measure import Numbers, measure_on
from . import augment, optimizer, views, whitening
from .settings import SpeedSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedImages(Images):
    """Data sets of images in memory, for `network.SpeedNet`."""

    settings: type[SpeedSettings] = SpeedSettings
    exclude: str | None = "whitening"
    follow: str | None = "network.py:* (SpeedNet.__call__)"  # the scale of the logits

    def initial(self, model: nn.Module, key: jax.Array, dataset: Any) -> Any:
        """The initial variables: the first layer whitens patches of training images."""
        variables = super().initial(model, key, dataset)
        return {**variables, "whitening": {"kernel": _whitening(dataset)}}

    def step(self, settings: Any, dataset: Any) -> dict[str, Any]:
        """Normalization, and the loss."""
        normalize = data.eval_transform(dataset)
        task = auxiliary.task(smoothing=settings.label_smoothing)
        return {"transform": lambda key, images: normalize(images), "task": task}

    def batches(
        self, settings: Any, dataset: Any, *, start: int, host: tuple[int, int]
    ) -> Iterator[Batch]:
        """Images and labels, shifted and mirrored."""
        usual = "alternate" if dataset.flip else "none"
        return augment.batches(
            dataset,
            cast(int, settings.batch_size),
            seed=settings.seed,
            start=start,
            host=host,
            shift=settings.translate,
            flip=settings.flip or usual,
        )

    def further(
        self, settings: Any, dataset: Any
    ) -> Mapping[str, Callable[[ms.Sliceable], Numbers]]:
        """Accuracy with several views of an image, where mirror images are alike."""
        if settings.views == 1 or not dataset.flip:
            return {}
        batches, count = inputs.held_out(dataset)
        logits = functools.partial(views.logits, views=settings.views)
        measure = measure_on(
            batches, count, normalize=data.eval_transform(dataset), logits=logits
        )
        return {f"accuracy_{settings.views}_views": measure}


def optimization(
    settings: Any, net: ms.Sliceable, schedule: Any, steps_per_epoch: int
) -> tuple[Any, Any]:
    """Optimizer and learning rate of resolved settings.

    Args:
      settings: `SpeedSettings`.
      net: the initial network.
      schedule: of the rates.
      steps_per_epoch: batches in an epoch.
    """
    steps, size = settings.epochs * steps_per_epoch, settings.batch_size
    muon = settings.optimizer == "muon"
    shape = optimizer.Triangle(steps=steps, peak=settings.peak, muon=muon)
    corners = optimizer.reached(net)
    # Losses are means over a batch; those of the flags are sums.
    kernels = shape.times(settings.lr * (1 if muon else size))
    decay = settings.weight_decay
    momentum = 0.85

    def group(lr: float) -> optimizer.Group:
        return optimizer.Group(shape.times(lr * size), momentum, decay / lr)

    first = settings.bias_lr if muon else settings.lr
    early = optimizer.falling(first * size, settings.whitening_epochs * steps_per_epoch)
    groups = {
        "kernel": optimizer.Group(kernels, 0.6, muon=True)
        if muon
        else group(settings.lr),
        "head": group(settings.head_lr),
        "norm": group(settings.bias_lr),
        "whitening": optimizer.Group(early, momentum),
    }
    drawn = [schedule(step) for step in range(min(steps, 200))]
    divisors = None
    if settings.divide and len(settings.rates) > 1:
        found = optimizer.counts(net, drawn)
        divisors = jax.tree.map(lambda n: n**settings.divide, found)
    lookahead = None
    if settings.lookahead:
        lookahead = optimizer.Lookahead(start=3 * steps_per_epoch, steps=steps)
    built = optimizer.build(groups, corners, divisors=divisors, lookahead=lookahead)
    return built, kernels


def _whitening(dataset: data.Dataset) -> jax.Array:
    """The first layer's kernel, from some training images."""
    chosen = dataset.x_train[: whitening.IMAGES]
    images = data.normalize(jnp.asarray(chosen), dataset.mean, dataset.std)
    return jnp.asarray(whitening.kernel(np.asarray(images)))
