"""Recurrent language models: the paper's NNLM, with LSTM or GRU layers."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .graded import GradedDense, gain_init
from .tokens import check_tokens, embedding, logits

Cell = Literal["lstm", "gru"]

# Uniform in ±1/√fan_in, as PyTorch begins.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, dropout between them, a softmax over the vocabulary.

    The NNLM of the paper (section 5): two LSTM layers. The input's share of all gates
    is one product for the whole text; only the state's share is a loop.

    Attributes:
      vocab: how many tokens there are.
      units: size of the embedding and of every layer.
      layers: how many.
      cell: "lstm", or "gru" (reset after the product, as PyTorch and Flax have it).
      dropout: share of the embedding's and of every layer's outputs that is dropped.
      tied: whether the softmax uses the embedding's weights, without a bias.
      carry: whether a call goes on where the last one stopped (truncated
        backpropagation through time). States are then in the collection "hidden",
        (b, units) for each layer, zeros from `init`; a call in which it is mutable
        leaves the new ones there. Otherwise every text begins with zeros, and any
        number of texts fits.
      graded: into how many parts the width is divided, each of which adds to gains and
        biases: then every product and the softmax are scaled for each width, by 1 / r
        to begin with, and learn it (`models.graded`). So narrow slices learn as fast as
        wide ones. 0 is without. Rates are best multiples of 1 / `graded`.
      dtype: what layers compute in; None is the type of the parameters, float32.

    Raises:
      ValueError: at construction for a cell that there is not, or `graded` below 0; at
        a call for tokens out of range, or for more or fewer texts than the carried
        state has.

    Example:
      >>> import jax
      >>> from mslice_jax.models import RecurrentLM
      >>> model = RecurrentLM(vocab=100, units=16, carry=True)
      >>> tokens = jax.numpy.zeros((4, 35), int)
      >>> variables = model.init(jax.random.key(0), tokens)
      >>> logits, state = model.apply(variables, tokens, mutable=["hidden"])
      >>> logits.shape, state["hidden"]["layer0"]["c"].shape
      ((4, 35, 100), (4, 16))
    """

    vocab: int
    units: int = 640
    layers: int = 2
    cell: Cell = "lstm"
    dropout: float = 0.5
    tied: bool = False
    carry: bool = False
    graded: int = 0
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.cell not in _STEPS:
            raise ValueError(f'expected cell "lstm" or "gru", got {self.cell!r}.')
        if self.graded < 0:
            raise ValueError(f"expected graded to be 0 or more, got {self.graded}.")
        super().__post_init__()

    @nn.nowrap
    def __check_call__(self, tokens: Any = None, *more: Any, **call: Any) -> None:
        """Raises ValueError for tokens out of range, which a trace does not see."""
        del more, call
        if tokens is not None:
            check_tokens(tokens, self.vocab)

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b t"], *, train: bool = False
    ) -> Float[Array, "b t vocab"]:
        """Tokens (b, t) -> logits (b, t, vocab) of the token that follows each.

        With ``train=True`` a random stream "dropout" is needed.
        """
        check_tokens(tokens, self.vocab)
        # As PyTorch begins. No norm follows: with less the first hundred steps learn
        # how frequent tokens are, and no more.
        embed = embedding(self.vocab, self.units, deviation=1.0, dtype=self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(embed(tokens))
        for index in range(self.layers):
            x = _Layer(
                units=self.units,
                cell=self.cell,
                carry=self.carry,
                graded=self.graded,
                dtype=self.dtype,
                name=f"layer{index}",
            )(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.graded:
            gain = self.param("gain", gain_init, (self.graded, self.units))
            x = x * gain.sum(axis=0)[None, None].astype(x.dtype)
        return logits(x, embed, tied=self.tied, dtype=self.dtype)


def lstm_lm(vocab: int, **attributes: Any) -> RecurrentLM:
    """`RecurrentLM` of LSTM layers: the paper's NNLM.

    Example:
      >>> lstm_lm(10_000).layers
      2
    """
    return RecurrentLM(vocab=vocab, cell="lstm", **attributes)


def gru_lm(vocab: int, **attributes: Any) -> RecurrentLM:
    """`RecurrentLM` of GRU layers.

    Example:
      >>> gru_lm(10_000, units=128).cell
      'gru'
    """
    return RecurrentLM(vocab=vocab, cell="gru", **attributes)


class _Layer(nn.Module):
    """(b, t, in) -> (b, t, units): the gates' inputs at once, then step by step."""

    units: int
    cell: Cell
    carry: bool
    graded: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        step, gates, parts = _STEPS[self.cell]
        inputs = _dense(
            gates * self.units,
            self.graded,
            dtype=self.dtype,
            bias_init=_forget_less if self.cell == "lstm" else nn.initializers.zeros,
            name="input",
        )(x)
        stored = [self._stored(name, x.shape[0]) for name in parts]
        start = tuple(s.value.astype(inputs.dtype) for s in stored)
        run = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        sizes = {"units": self.units, "graded": self.graded, "dtype": self.dtype}
        end, y = run(**sizes, name="state")(start, inputs)
        if self.carry and not self.is_initializing():
            for one, value in zip(stored, end, strict=True):
                if self.is_mutable_collection("hidden"):
                    one.value = value.astype(one.value.dtype)
        return y

    def _stored(self, name: str, batch: int) -> Any:
        """Where a part of the state comes from."""
        zeros = jnp.zeros((batch, self.units))
        if not self.carry:
            return _Zeros(zeros)
        kept = self.variable("hidden", name, lambda: zeros)
        if kept.value.shape[0] != batch:
            raise ValueError(
                f"expected {kept.value.shape[0]} texts, as many as the carried hidden "
                f"state has; got {batch}. Give `init` that many, or build the network "
                "with carry=False."
            )
        return kept


class _Zeros:
    """A state that nobody carries."""

    def __init__(self, value: jax.Array):
        self.value = value


class _LSTMStep(nn.Module):
    """((c, h), gates of the input) -> the new state, and h."""

    units: int
    graded: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, state: Any, inputs: jax.Array) -> Any:
        c, h = state
        gates = inputs + _dense(
            4 * self.units,
            self.graded,
            use_bias=False,
            dtype=self.dtype,
            name="gates",
        )(h)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


class _GRUStep(nn.Module):
    """((h,), gates of the input) -> the new state, and h."""

    units: int
    graded: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, state: Any, inputs: jax.Array) -> Any:
        (h,) = state
        gates = _dense(3 * self.units, self.graded, dtype=self.dtype, name="gates")(h)
        of_input, of_state = jnp.split(inputs, 3, axis=-1), jnp.split(gates, 3, axis=-1)
        r = nn.sigmoid(of_input[0] + of_state[0])
        z = nn.sigmoid(of_input[1] + of_state[1])
        n = jnp.tanh(of_input[2] + r * of_state[2])
        h = (1 - z) * n + z * h
        return (h,), h


def _dense(features: int, graded: int, **options: Any) -> nn.Module:
    """A dense layer that begins as PyTorch's, with tables of gains if `graded`."""
    options = {"kernel_init": _kernel_init, **options}
    if not graded:
        return nn.Dense(features, **options)
    return GradedDense(features, rows=graded, **options)


# One step, gates beside each other, parts of the state.
_STEPS: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "lstm": (_LSTMStep, 4, ("c", "h")),
    "gru": (_GRUStep, 3, ("h",)),
}


def _forget_less(
    key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
) -> jax.Array:
    """Zeros, but 1 for the forget gate: a new network remembers (Gers et al., 2000)."""
    del key, out_sharding
    return jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[-1] // 4)
