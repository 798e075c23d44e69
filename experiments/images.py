"""Recipes for images: batch norms, accuracies, costs of one image."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.plots import plot_accuracy_over_epochs, plot_accuracy_vs_flops
from mslice_jax.profile import RateProfile
from mslice_jax.train import Batch, cross_entropy

from . import inputs, weights
from .kind import Pace, initialize
from .measure import ACCURACY, Numbers, over_epochs
from .settings import Defaults, Settings


class Images:
    """Data sets of images and labels, see `inputs`."""

    settings = Settings
    quantity = ACCURACY
    pictures = ("accuracy_vs_flops.png", "accuracy_over_epochs.png")

    def defaults(self, recipe: Any, settings: Settings) -> Defaults:
        """The defaults for digits, or for all other images."""
        return recipe.digits if settings.dataset == "digits" else recipe.cifar

    def check(self, recipe: Any, settings: Settings) -> None:
        """A wrong depth should not wait for the data."""
        recipe.model(depth=settings.depth, widen=settings.widen, num_classes=10)

    def load(self, settings: Settings, *, run: Path | None = None) -> inputs.Inputs:
        """The data set that the flags name."""
        del run
        return inputs.load(settings)

    def steps_per_epoch(self, settings: Settings, dataset: inputs.Inputs) -> int:
        """Full batches."""
        count = inputs.num_train(dataset)
        return data.steps_per_epoch(count, cast(int, settings.batch_size))

    def network(
        self, recipe: Any, settings: Settings, dataset: inputs.Inputs
    ) -> tuple[ms.Sliceable, str]:
        """The initial network, and its name."""
        size = {"depth": settings.depth, "widen": settings.widen}
        model = recipe.model(**size, num_classes=dataset.num_classes)
        name = f"{type(model).__name__}-{settings.depth}"
        if settings.widen != 1:
            name += f" x{settings.widen:g}"
        shape = (cast(int, settings.batch_size), *dataset.image_shape)
        key, _ = jax.random.split(jax.random.key(settings.seed))
        variables = initialize(model, key, jnp.zeros((1, *dataset.image_shape)))

        def upgrade(variables: Any) -> ms.Sliceable:
            return ms.upgrade(
                model,
                variables,
                jax.ShapeDtypeStruct(shape, jnp.float32),
                rates=settings.rates,
                groups=settings.groups,
                norm=settings.norm,
                shards=cast(int, settings.shards),
            )

        return weights.begin(settings.weights, variables, upgrade), name

    def step(self, settings: Settings, dataset: inputs.Inputs) -> dict[str, Any]:
        """Augmentation, and the loss."""
        loss = functools.partial(cross_entropy, smoothing=settings.label_smoothing)
        return {"transform": data.train_transform(dataset), "loss": loss}

    def carry(self, settings: Settings) -> tuple[str, ...]:
        """No collections."""
        del settings
        return ()

    def batches(
        self,
        settings: Settings,
        dataset: inputs.Inputs,
        *,
        start: int,
        host: tuple[int, int],
    ) -> Iterator[Batch]:
        """Images and labels."""
        size = cast(int, settings.batch_size)
        return inputs.train_batches(
            dataset, size, seed=settings.seed, start=start, host=host
        )

    def blank(self, settings: Settings, dataset: inputs.Inputs, size: int) -> Batch:
        """Black images."""
        del settings
        return inputs.blank_batch(dataset, size)

    def pace(self, settings: Settings) -> Pace:
        """Images per second."""
        del settings
        return Pace(what="images")

    def measurement(
        self, settings: Settings, dataset: inputs.Inputs
    ) -> Callable[[ms.Sliceable], Numbers]:
        """Accuracy and loss; the statistics of shared norms are measured first."""
        measure = inputs.evaluation(dataset)
        if settings.norm != "shared":
            return measure
        # A batch norm for all rates has the statistics of none.
        parts = inputs.calibration_batches(dataset)
        return lambda net: measure(ms.calibrate(net, parts))

    def keep(self, dataset: inputs.Inputs, workdir: Path) -> None:
        """Writes nothing."""

    def shipped(
        self,
        recipe: Any,
        settings: Settings,
        dataset: inputs.Inputs,
        net: ms.Sliceable,
    ) -> ms.Sliceable:
        """With statistics for each rate."""
        del recipe
        if settings.norm != "shared":
            return net
        return ms.calibrate(net, inputs.calibration_batches(dataset))

    def example(self, settings: Settings, dataset: inputs.Inputs) -> np.ndarray:
        """One image."""
        del settings
        return np.zeros((1, *dataset.image_shape), np.float32)

    def draw(
        self,
        workdir: Path,
        numbers: Numbers,
        profiles: Mapping[float, RateProfile],
        title: str,
    ) -> None:
        """Accuracy against FLOPs, and over the epochs."""
        against, over = (workdir / name for name in self.pictures)
        flops = {rate: cost.flops for rate, cost in profiles.items()}
        if not any(map(math.isnan, flops.values())):
            plot_accuracy_vs_flops(against, numbers.accuracy, flops, title=title)
        each = over_epochs(workdir / "metrics.jsonl", "accuracy")
        plot_accuracy_over_epochs(over, each, title=title)
