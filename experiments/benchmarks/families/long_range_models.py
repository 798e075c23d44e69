"""Deep state spaces of long-range-models, in Linen: S5 and LRU."""

import functools
from collections.abc import Callable

from experiments.benchmarks.families.family import Family, Network, load, tokens
from experiments.benchmarks.families.frameworks import from_linen


def sequence_model(layer: str, **sizes: int) -> Network:
    """Two blocks of a state space and a gate, between an embedding and a softmax."""
    models = load("long_range_models")
    blocks = models.S4Module(64, 2, functools.partial(getattr(models, layer), **sizes))
    ids = tokens(2, 16, vocabulary=31)
    return from_linen(models.SequenceModel(blocks, 31), ids, own=True)


def _family(name: str, build: Callable[[], Network]) -> Family:
    return Family(
        name=name,
        package="long-range-models",
        module="long_range_models",
        build=build,
    )


FAMILIES = (
    _family("S5", lambda: sequence_model("S5Layer", state_dim=64)),
    _family("LRU", lambda: sequence_model("LRULayer", state_dim=64)),
)
