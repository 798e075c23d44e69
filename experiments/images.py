"""Recipes for images: batch norms, accuracies, costs of one image."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.plots import plot_accuracy_over_epochs, plot_accuracy_vs_flops
from mslice_jax.profile import RateProfile
from mslice_jax.train import Batch

from . import auxiliary, inputs, weights
from .kind import Pace, initialize
from .measure import ACCURACY, Numbers, over_epochs
from .predictions import Predictions, predict_on
from .settings import ImageDefaults, ImageSettings, Settings

T = TypeVar("T")
KEPT = "images.json"
"""What a trained network takes and tells apart: `Kept`, as JSON, in the workdir."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What a network has to know of its images.

    Attributes:
      image_shape: (height, width, channels).
      num_classes: how many classes the labels name.
      mean, std: for each channel; the network takes (image - mean) / std.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Data sets of images and labels, see `inputs`.

    Attributes:
      settings: the class of the flags, which say how a network is built.
      enlarge: pixels of a digit are enlarged to squares of so many by so many.
      exclude: patterns of parameters that keep their size, as `upgrade` takes them.
      follow: patterns of lines whose numbers are made of the narrow sizes, likewise.
    """

    settings: type[ImageSettings] = Settings
    enlarge: int = 1
    exclude: str | None = None
    follow: str | None = None

    quantity = ACCURACY
    pictures = ("accuracy_vs_flops.png", "accuracy_over_epochs.png")

    def defaults(self, recipe: Any, settings: ImageSettings) -> ImageDefaults:
        """The defaults for digits, or for all other images."""
        found: Any = recipe.digits if settings.dataset == "digits" else recipe.cifar
        return found if isinstance(found, ImageDefaults) else found(settings)

    def check(self, recipe: Any, settings: ImageSettings) -> None:
        """A wrong depth should not wait for the data."""
        settings.check()
        if (size := self._image_size(settings)) is not None:
            recipe.model(**settings.sizes(size), num_classes=10)

    def _image_size(self, settings: ImageSettings) -> int | None:
        """Height of the images, where it is known before they are."""
        known = {"digits": 8 * self.enlarge, "cifar10": 32, "cifar100": 32}
        if settings.dataset in ("imagenet", "folder"):
            return inputs.size_on_disk(settings)
        return known.get(settings.dataset)

    def load(
        self, settings: ImageSettings, *, run: Path | None = None
    ) -> inputs.Inputs:
        """The data set that the flags name."""
        del run
        found = inputs.load(settings)
        if settings.dataset == "digits" and isinstance(found, data.Dataset):
            return inputs.enlarged(found, self.enlarge)
        return found

    def steps_per_epoch(self, settings: ImageSettings, dataset: inputs.Inputs) -> int:
        """Full batches."""
        count = inputs.num_train(dataset)
        return data.steps_per_epoch(count, cast(int, settings.batch_size))

    def classes(self, dataset: inputs.Inputs) -> int:
        """Classes of the labels."""
        return dataset.num_classes

    def network(
        self, recipe: Any, settings: ImageSettings, dataset: inputs.Inputs
    ) -> tuple[ms.Sliceable, str]:
        """The initial network, and its name."""
        model = _model(recipe, settings, dataset)
        key, _ = jax.random.split(jax.random.key(settings.seed))
        variables = self.initial(model, key, dataset)
        call = auxiliary.call(model, key)

        def upgrade(variables: Any) -> ms.Sliceable:
            return self._upgraded(model, settings, dataset, variables, **call)

        net = weights.begin(
            settings.weights, variables, upgrade, optional=auxiliary.HEADS
        )
        return net, settings.title(model)

    def initial(self, model: nn.Module, key: jax.Array, dataset: Any) -> Any:
        """The initial variables."""
        return initialize(model, key, jnp.zeros((1, *dataset.image_shape)))

    def _upgraded(
        self,
        model: nn.Module,
        settings: ImageSettings,
        dataset: inputs.Inputs,
        variables: Any,
        **call: Any,
    ) -> ms.Sliceable:
        shape = (cast(int, settings.batch_size), *dataset.image_shape)
        return ms.upgrade(
            model,
            variables,
            jax.ShapeDtypeStruct(shape, jnp.float32),
            rates=settings.rates,
            groups=settings.groups,
            norm=_norm(settings),
            shards=cast(int, settings.shards),
            exclude=self.exclude,
            follow=self.follow,
            call=call,
        )

    def step(self, settings: ImageSettings, dataset: inputs.Inputs) -> dict[str, Any]:
        """Augmentation, and the loss."""
        task = auxiliary.task(smoothing=settings.label_smoothing)
        return {"transform": data.train_transform(dataset), "task": task}

    def carry(self, settings: ImageSettings) -> tuple[str, ...]:
        """No collections."""
        del settings
        return ()

    def batches(
        self,
        settings: ImageSettings,
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

    def blank(
        self, settings: ImageSettings, dataset: inputs.Inputs, size: int
    ) -> Batch:
        """Black images."""
        del settings
        return inputs.blank_batch(dataset, size)

    def pace(self, settings: ImageSettings) -> Pace:
        """Images per second."""
        del settings
        return Pace(what="images")

    def measurement(
        self, settings: ImageSettings, dataset: inputs.Inputs
    ) -> Callable[[ms.Sliceable], Numbers]:
        """Accuracy and loss; the statistics of shared norms are measured first."""
        return _calibrated(settings, dataset, inputs.evaluation(dataset))

    def further(
        self, settings: ImageSettings, dataset: inputs.Inputs
    ) -> Mapping[str, Callable[[ms.Sliceable], Numbers]]:
        """None."""
        del settings, dataset
        return {}

    def predictions(
        self, settings: ImageSettings, dataset: inputs.Inputs
    ) -> Callable[[ms.Sliceable], Predictions]:
        """Classes of the images; the statistics of shared norms are measured first."""
        batches, _ = inputs.held_out(dataset)
        normalize = data.eval_transform(dataset)
        return _calibrated(settings, dataset, predict_on(batches, normalize=normalize))

    def keep(self, dataset: inputs.Inputs, workdir: Path) -> None:
        """Shape, normalization and number of classes."""
        each = [field.name for field in dataclasses.fields(Kept)]
        values = {name: getattr(dataset, name) for name in each}
        (workdir / KEPT).write_text(json.dumps(values) + "\n", encoding="utf-8")

    def shipped(
        self,
        recipe: Any,
        settings: ImageSettings,
        dataset: inputs.Inputs,
        net: ms.Sliceable,
    ) -> ms.Sliceable:
        """Without auxiliary heads, and with statistics for each rate."""
        if auxiliary.has_heads(_model(recipe, settings, dataset)):
            model = _shipped_model(recipe, settings, dataset)
            image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
            types = jax.eval_shape(model.init, jax.random.key(0), image)
            bare = self._upgraded(model, settings, dataset, types)
            net = bare.replace(auxiliary.without_variables(net.variables))
        if _norm(settings) != "shared":
            return net
        return ms.calibrate(net, inputs.calibration_batches(dataset))

    def model(self, recipe: Any, settings: ImageSettings, workdir: Path) -> nn.Module:
        """Without auxiliary heads; the run has kept its sizes."""
        file = workdir / KEPT
        try:
            kept = Kept(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"cannot read what the run kept of its images, {file}: {error}. The "
                "command of the run, given again, writes it."
            ) from error
        return _shipped_model(recipe, settings, kept)

    def example(self, settings: ImageSettings, dataset: inputs.Inputs) -> np.ndarray:
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


def _model(
    recipe: Any, settings: ImageSettings, images: inputs.Inputs | Kept
) -> nn.Module:
    sizes = settings.sizes(images.image_shape[0])
    return recipe.model(**sizes, num_classes=images.num_classes)


def _shipped_model(
    recipe: Any, settings: ImageSettings, images: inputs.Inputs | Kept
) -> nn.Module:
    model = _model(recipe, settings, images)
    return auxiliary.without_heads(model) if auxiliary.has_heads(model) else model


def _norm(settings: ImageSettings) -> str | None:
    """What becomes of batch norms; None of a recipe without any."""
    return getattr(settings, "norm", None)


def _calibrated(
    settings: ImageSettings,
    dataset: inputs.Inputs,
    measure: Callable[[ms.Sliceable], T],
) -> Callable[[ms.Sliceable], T]:
    """The measurement, of a network with statistics for each rate."""
    if _norm(settings) != "shared":
        return measure
    # A batch norm for all rates has the statistics of none.
    parts = inputs.calibration_batches(dataset)
    return lambda net: measure(ms.calibrate(net, parts))
