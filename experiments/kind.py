"""The kind of a recipe's data, images or text: a contract with two implementations.

`recipe`, `prepare` and `evaluate` are the same for both; `images.py` and `text.py` have
the differences.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.profile import RateProfile
from mslice_jax.train import Batch

from .measure import Numbers, Quantity
from .predictions import Predictions
from .settings import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """The unit of a run's speed.

    Attributes:
      what: the counted unit, such as "images".
      each: units per example.
    """

    what: str
    each: int = 1


class Kind(Protocol):
    """A kind of data. Methods raise ValueError for settings that do not fit."""

    @property
    def settings(self) -> type[Training]:
        """The class of its flags."""
        ...

    @property
    def quantity(self) -> Quantity:
        """The shown measurement on held-out examples."""
        ...

    @property
    def pictures(self) -> tuple[str, ...]:
        """Files that `draw` writes."""
        ...

    def defaults(self, recipe: Any, settings: Any) -> Any:
        """A dataclass with the defaults of flags that are not given."""
        ...

    def check(self, recipe: Any, settings: Any) -> None:
        """All checks of resolved settings that need no data."""
        ...

    def load(self, settings: Any, *, run: Path | None = None) -> Any:
        """The data; a `run` in a folder continues with the parts that it kept of it."""
        ...

    def steps_per_epoch(self, settings: Any, dataset: Any) -> int:
        """Batches per epoch."""
        ...

    def classes(self, dataset: Any) -> int:
        """Length of the logits."""
        ...

    def network(
        self, recipe: Any, settings: Any, dataset: Any
    ) -> tuple[ms.Sliceable, str]:
        """The initial network, and its name."""
        ...

    def step(self, settings: Any, dataset: Any) -> dict[str, Any]:
        """Arguments of `make_train_step` that belong to the data."""
        ...

    def carry(self, settings: Any) -> tuple[str, ...]:
        """Collections that are carried from batch to batch."""
        ...

    def batches(
        self, settings: Any, dataset: Any, *, start: int, host: tuple[int, int]
    ) -> Iterator[Batch]:
        """This host's part of the batches of the steps start, start + 1, ..."""
        ...

    def blank(self, settings: Any, dataset: Any, size: int) -> Batch:
        """A batch of `size` blank examples, to compile with."""
        ...

    def pace(self, settings: Any) -> Pace:
        """The unit of the speed."""
        ...

    def measurement(
        self, settings: Any, dataset: Any
    ) -> Callable[[ms.Sliceable], Numbers]:
        """The measurement on held-out examples."""
        ...

    def further(
        self, settings: Any, dataset: Any
    ) -> Mapping[str, Callable[[ms.Sliceable], Numbers]]:
        """Other measurements of the network that is saved, by the name of each."""
        ...

    def predictions(
        self, settings: Any, dataset: Any
    ) -> Callable[[ms.Sliceable], Predictions]:
        """The predicted classes of held-out examples, or tokens."""
        ...

    def keep(self, dataset: Any, workdir: Path) -> None:
        """Writes the parts of the network besides its weights."""
        ...

    def shipped(
        self, recipe: Any, settings: Any, dataset: Any, net: ms.Sliceable
    ) -> ms.Sliceable:
        """The trained network in the form that is saved."""
        ...

    def model(self, recipe: Any, settings: Any, workdir: Path) -> nn.Module:
        """The model of the form that is saved, from the files of a run alone."""
        ...

    def example(self, settings: Any, dataset: Any) -> Any:
        """One input, to measure the cost of a call."""
        ...

    def draw(
        self,
        workdir: Path,
        numbers: Numbers,
        profiles: Mapping[float, RateProfile],
        title: str,
    ) -> None:
        """Writes the pictures."""
        ...


def initialize(model: nn.Module, key: jax.Array, inputs: Any) -> dict[str, Any]:
    """Fresh variables, in one compiled program."""
    # It runs once: LLVM would take six seconds to optimize it; without, it takes one.
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    init = jax.jit(model.init, compiler_options=options)
    return init(key, inputs)
