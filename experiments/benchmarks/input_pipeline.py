"""How many images per second does the pipeline prepare, and does a device wait?

    python -m experiments.benchmarks.input_pipeline --out runs/input_pipeline.json

Photograph-like JPEGs of 500 x 375 pixels, ImageNet's usual size, are generated; then
they are decoded, cropped, resized to 224 x 224 and put into batches, by this process
(workers 0) and by worker processes:

    first         seconds until the first batch: processes start and import
    images/s      after that, with nothing else to do; the median of the rounds
    waits         share of its time that a loop waits for data, with a device that takes
                  `device` images a second (a pause stands in for it)

Every extra worker should add what the first one gives, until the cores are used up; the
loop should wait less than 5 % of its time where images/s is above `device`.
"""

import dataclasses
import io
import itertools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import tyro

from experiments.benchmarks.result import save
from mslice_jax.data import train_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement."""

    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of worker processes."""
    batch_size: int = 64
    """Images per batch."""
    rounds: int = 5
    """Measurements, of which the median counts."""
    batches: int = 8
    """Batches in a measurement."""
    device: float = 300
    """Images per second of the pretended device."""
    out: pathlib.Path | None = None
    """JSON file for the figures."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Numbered JPEG files, a source of `train_images`."""

    folder: pathlib.Path
    count: int

    def __len__(self) -> int:
        """Number of files."""
        return self.count

    def __getitems__(self, numbers: Sequence[int], /) -> list[dict[str, Any]]:
        """Their bytes; labels do not matter."""
        return [
            {"image": (self.folder / f"{number}.jpg").read_bytes(), "label": 0}
            for number in numbers
        ]


def write(folder: pathlib.Path, count: int) -> Files:
    """Random shapes with the grain of a photograph, about 85 kB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        large = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        pixels = np.asarray(large) + rng.normal(0, 12, (375, 500, 3))
        jpeg = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(jpeg, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(jpeg.getvalue())
    return Files(folder, count)


def measure(source: Files, workers: int, settings: Settings) -> dict[str, float]:
    """The figures of the table for one number of workers."""
    began = time.perf_counter()
    size = settings.batch_size
    stream = train_images(source, batch_size=size, seed=0, workers=workers)
    next(stream)
    first = time.perf_counter() - began
    # Batches prepared before the first request are not counted.
    for _ in itertools.islice(stream, 3 * workers):
        pass
    speeds, shares = [], []
    for _ in range(settings.rounds):
        began = time.perf_counter()
        for _ in range(settings.batches):
            next(stream)
        speeds.append(settings.batches * size / (time.perf_counter() - began))
    for _ in range(settings.rounds):
        waited, began = 0.0, time.perf_counter()
        for _ in range(settings.batches):
            asked = time.perf_counter()
            next(stream)
            waited += time.perf_counter() - asked
            time.sleep(size / settings.device)
        shares.append(waited / (time.perf_counter() - began))
    if workers:
        stream.close()  # type: ignore[attr-defined]
    return {
        "first_seconds": round(first, 2),
        "examples_per_second": round(statistics.median(speeds), 1),
        "wait_share": round(statistics.median(shares), 3),
    }


def main(settings: Settings) -> dict[str, Any]:
    """Measure, show and write; returns the figures."""
    cores = os.cpu_count()
    table = rich.table.Table(
        title=f"Batches of {settings.batch_size}, {cores} CPU cores, a device of "
        f"{settings.device:g} images/s",
        title_justify="left",
        box=rich.box.SIMPLE,
    )
    for name in ("workers", "first", "images/s", "waits"):
        table.add_column(name, justify="right")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        source = write(pathlib.Path(folder), 4 * settings.batch_size)
        for workers in settings.workers:
            found = results[str(workers)] = measure(source, workers, settings)
            table.add_row(
                str(workers),
                f"{found['first_seconds']:.1f} s",
                f"{found['examples_per_second']:.0f}",
                f"{100 * found['wait_share']:.0f} %",
            )
    rich.console.Console().print(table)
    figures = {"cpu_cores": cores, "workers": results}
    save(settings.out, figures)
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
