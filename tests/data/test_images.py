"""Images from JPEG to batch: order, crops, errors."""

import importlib
import io
import itertools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks import input_pipeline
from mslice_jax.data import DataError, eval_images, shared_memory, train_images
from mslice_jax.data.crops import eval_pixels, random_box, train_pixels, uniform

ROOT = pathlib.Path(__file__).resolve().parents[2]


def encode(pixels, kind="JPEG"):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, quality=95, subsampling=0)
    return encoded.getvalue()


def map_of(height, width, blue=0):
    """An image whose pixels show their position: red to the right, green down."""
    pixels = np.full((height, width, 3), blue, float)
    pixels[..., 0] = 255 * (np.arange(width) + 0.5) / width
    pixels[..., 1] = 255 * (np.arange(height) + 0.5).reshape(-1, 1) / height
    return pixels.round().astype(np.uint8)


class Pictures:
    """Maps of different sizes; their blue and their labels identify them."""

    def __init__(self, count=23):
        sizes = np.random.default_rng(0).integers(20, 60, (count, 2))
        self.records = [
            {
                "image": encode(map_of(h, w, blue=10 * number)),
                "label": 100 + number,
                "file_name": f"n{number}.JPEG".encode(),
            }
            for number, (h, w) in enumerate(sizes)
        ]

    def __len__(self):
        return len(self.records)

    def __str__(self):
        return "the pictures"

    def __getitems__(self, numbers):
        return [self.records[number] for number in numbers]


PICTURES = Pictures()
SMALL = {"batch_size": 4, "image_size": 8}


def steps(count, start=0, seed=3, **changes):
    """The first batches from step `start` on."""
    options = {**SMALL, "seed": seed, "start": start, **changes}
    return list(itertools.islice(train_images(PICTURES, **options), count))


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        for array, same in zip(batch, other, strict=True):
            assert array.dtype == same.dtype
            np.testing.assert_array_equal(array, same)


def test_an_epoch_has_each_example_once_with_its_own_label():
    # 23 examples are 5 batches of 4 an epoch, and 3 are left over.
    seen = []
    for images, labels in steps(10):
        assert (images.shape, images.dtype) == ((4, 8, 8, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((4,), np.int32)
        blue = images[..., 2].mean(axis=(1, 2))
        np.testing.assert_allclose(blue, 10 * (labels - 100), atol=3)  # JPEG rounds
        seen.append(labels.tolist())
    for epoch in (seen[:5], seen[5:]):
        labels = list(itertools.chain(*epoch))
        assert len(set(labels)) == len(labels) == 20
    assert seen[:5] != seen[5:]


def test_a_batch_depends_on_seed_and_step_alone():
    in_order = steps(12)
    assert_same(steps(12), in_order)
    for start in (1, 4, 5, 11):
        assert_same(steps(12 - start, start=start), in_order[start:])
    other = steps(12, seed=4)
    assert [y.tolist() for _, y in other] != [y.tolist() for _, y in in_order]


def test_a_crop_depends_on_seed_epoch_and_number_of_the_image():
    for step, epoch in ((0, 0), (4, 0), (5, 1), (14, 2)):
        ((images, labels),) = steps(1, start=step)
        for image, number in zip(images, labels - 100, strict=True):
            encoded, draws = (
                PICTURES.records[number]["image"],
                uniform(3, epoch, number),
            )
            np.testing.assert_array_equal(image, train_pixels(encoded, 8, draws))


def test_batches_do_not_change():
    # If this changes, a run of an older version resumes with other batches:
    # say so in CHANGELOG.md, and only then write the new numbers here.
    _, labels = steps(1, start=7, seed=2**40)[0]
    assert labels.tolist() == [110, 113, 122, 111]
    draws = uniform(2**40, 10**6, 10**9)[:3]
    np.testing.assert_allclose(
        draws, [0.8829233587468353, 0.6391039328876766, 0.17545588919866306], rtol=1e-12
    )
    assert random_box(375, 500, np.full(22, 0.25)) == (29, 69, 259, 224)


def test_hosts_share_the_batch_of_one():
    whole = steps(7)
    parts = [steps(7, host=(number, 2)) for number in range(2)]
    assert parts[0][0][0].shape == (2, 8, 8, 3)
    together = [
        tuple(np.concatenate(halves) for halves in zip(*batches, strict=True))
        for batches in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


def edges(line):
    """Begin and end of a line of `map_of`, as fractions, from its middle half."""
    size = len(line)
    places = np.arange(size // 4, size - size // 4)
    slope, begin = np.polyfit((places + 0.5) / size, line[places] / 255, 1)
    return begin, begin + slope


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(90, 120), (701, 563)])
def test_crops_show_the_drawn_part(height, width, kind):
    # For a larger JPEG only a part of the pixels is computed.
    encoded = encode(map_of(height, width), kind)
    for number in range(40):
        draws = uniform(0, 0, number)
        top, left, h, w = random_box(height, width, draws[1:])
        pixels = train_pixels(encoded, 32, draws)
        across = left / width, (left + w) / width
        if draws[0] < 0.5:  # mirrored
            across = across[::-1]
        assert edges(pixels[..., 0].mean(axis=0)) == pytest.approx(across, abs=0.005)
        down = top / height, (top + h) / height
        assert edges(pixels[..., 1].mean(axis=1)) == pytest.approx(down, abs=0.005)


def test_crops_lie_within_and_are_spread_as_they_should():
    count, height, width = 4000, 375, 500
    areas, ratios, downs, rights = [], [], [], []
    for number in range(count):
        top, left, h, w = random_box(height, width, uniform(1, 2, number)[1:])
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        areas.append(h * w / (height * width))
        ratios.append(w / h)
        downs.append(top / max(1, height - h))
        rights.append(left / max(1, width - w))
    assert (min(areas), max(areas)) == pytest.approx((0.08, 1), abs=0.02)
    assert (min(ratios), max(ratios)) == pytest.approx((3 / 4, 4 / 3), abs=0.02)
    # Hoeffding's bound for one in a million.
    bound = math.sqrt(math.log(2e6) / 2 / count)
    for places in (downs, rights):
        assert np.mean(places) == pytest.approx(0.5, abs=bound)
    expected = np.mean([by_the_book(height, width, seed) for seed in range(count)])
    assert np.mean(areas) == pytest.approx(expected, abs=2 * bound)
    # Below half of the area every part fits: their areas are uniform from 0.08 to 0.5,
    # their ratios as often below 1 as above.
    small = np.array(areas) < 0.5
    bound = math.sqrt(math.log(2e6) / 2 / small.sum())
    assert np.mean(np.array(areas)[small] < 0.29) == pytest.approx(0.5, abs=bound)
    assert np.mean(np.array(ratios)[small] < 1) == pytest.approx(0.5, abs=bound)


def by_the_book(height, width, seed):
    """The area of a crop as torchvision's documentation describes it."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        area = rng.uniform(0.08, 1) * height * width
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = np.sqrt(area / ratio), np.sqrt(area * ratio)
        if h <= height and w <= width:
            return h * w / (height * width)
    return height * height * 4 / 3 / (height * width)


@pytest.mark.parametrize(
    ("size", "box"),
    [((10, 400), (0, 193, 10, 13)), ((400, 10), (193, 0, 13, 10))],
)
def test_the_middle_is_the_crop_if_none_fits(size, box):
    # All candidates are larger than the image in one direction.
    assert random_box(*size, np.full(22, 0.999)) == box


def test_crops_reach_both_ends():
    # A fifth of the area, a square of 45 x 45; then both ends.
    draws = np.array([(0.2 - 0.08) / 0.92, 0.5] * 10 + [0, 0])
    assert random_box(100, 100, draws) == (0, 0, 45, 45)
    draws[-2:] = 0.9999
    assert random_box(100, 100, draws) == (55, 55, 45, 45)


def test_half_are_mirrored():
    first = np.array([uniform(0, 0, number)[0] for number in range(4000)])
    bound = math.sqrt(math.log(2e6) / 2 / 4000)
    assert np.mean(first < 0.5) == pytest.approx(0.5, abs=bound)


def test_crops_change_from_epoch_to_epoch_and_image_to_image():
    draws = {tuple(uniform(s, e, n)) for s in (0, 1) for e in (0, 1) for n in (0, 1)}
    assert len(draws) == 8


@pytest.mark.parametrize(("height", "width"), [(90, 130), (130, 90), (64, 64)])
def test_evaluation_shows_the_middle(height, width):
    found = eval_pixels(encode(map_of(height, width)), 56)
    # As documented: the shorter side to 64, then the middle 56 x 56.
    scale = 64 / min(height, width)
    new = (round(width * scale), round(height * scale))
    whole = Image.open(io.BytesIO(encode(map_of(height, width))))
    whole = np.asarray(whole.resize(new, Image.Resampling.BILINEAR))
    top, left = (whole.shape[0] - 56) // 2, (whole.shape[1] - 56) // 2
    expected = whole[top : top + 56, left : left + 56]
    # Half a pixel, where the sizes are rounded, is up to 2 of 255 here.
    assert np.abs(found.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("size", [1, 5, 23, 40])
def test_evaluation_sees_each_example_once_in_one_shape(size):
    batches = list(eval_images(PICTURES, batch_size=size, image_size=8))
    for images, labels, weights in batches:
        assert images.shape == (size, 8, 8, 3)
        assert labels.shape == weights.shape == (size,)
        dtypes = images.dtype, labels.dtype, weights.dtype
        assert dtypes == (np.uint8, np.int32, np.float32)
    images, labels, weights = (
        np.concatenate(arrays) for arrays in zip(*batches, strict=True)
    )
    np.testing.assert_array_equal(weights, [1] * 23 + [0] * (len(weights) - 23))
    np.testing.assert_array_equal(labels[:23], np.arange(23) + 100)
    blue = images[:23, ..., 2].mean(axis=(1, 2))
    np.testing.assert_allclose(blue, 10 * np.arange(23), atol=3)
    assert not images[23:].any()


@pytest.mark.parametrize("kind", ["PNG", "grey", "CMYK"])
def test_images_of_other_encodings(kind):
    picture = Image.new("RGB", (40, 30), (200, 200, 200))
    if kind != "PNG":
        picture = picture.convert("L" if kind == "grey" else "CMYK")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG" if kind == "PNG" else "JPEG")
    for pixels in (
        train_pixels(encoded.getvalue(), 8, uniform(0, 0, 0)),
        eval_pixels(encoded.getvalue(), 8),
    ):
        assert pixels.shape == (8, 8, 3)
        assert np.abs(pixels.astype(int) - 200).max() <= 2


def broken(number=17):
    pictures = Pictures()
    whole = pictures.records[number]["image"]
    pictures.records[number]["image"] = whole[: len(whole) // 2]
    return pictures


BROKEN = r"image 17 \(n17\.JPEG\) of the pictures cannot be decoded .*Replace it"


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_a_file_that_is_no_image_is_named(content):
    pictures = Pictures()
    pictures.records[17]["image"] = content
    with pytest.raises(DataError, match=BROKEN):
        list(eval_images(pictures, **SMALL))


def test_a_broken_image_is_named_in_training_too():
    with pytest.raises(DataError, match=BROKEN):
        list(itertools.islice(train_images(broken(), seed=0, **SMALL), 6))


def test_files_that_cannot_be_read():
    class Gone(Pictures):
        def __getitems__(self, numbers):
            raise OSError("no such file")

    with pytest.raises(DataError, match=r"the pictures cannot be read; .*no such file"):
        next(eval_images(Gone(), **SMALL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24}, "between 1 and the 23 .* got 24"),
        ({"batch_size": 0}, "between 1 and the 23 .* got 0"),
        ({"host": (0, 3)}, "that 3 hosts divide; got 4"),
        ({"image_size": 0}, "--image-size.* got 0 and 0"),
        ({"workers": -1}, "--workers.* got 8 and -1"),
    ],
)
def test_bad_options_raise_before_anything_is_read(options, message):
    with pytest.raises(DataError, match=message):
        train_images(PICTURES, **{**SMALL, "seed": 0, **options})


def test_evaluation_in_batches_of_none():
    with pytest.raises(DataError, match="1 or more; got 0"):
        eval_images(PICTURES, batch_size=0)


def test_the_private_name_of_grain_exists_and_is_optional(monkeypatch):
    # A stream with workers loads it. If this fails with a new Grain: see
    # `shared_memory`, and find another way to wait.
    arrays = importlib.import_module(shared_memory._MODULE).SharedMemoryArray
    assert hasattr(arrays, "_del_thread_pool")
    waited = []
    pool = types.SimpleNamespace(apply=waited.append)
    monkeypatch.setattr(arrays, "_del_thread_pool", pool)
    shared_memory.wait_for_shared_memory()
    assert waited == [int]
    for module in (types.ModuleType("without"), None):
        monkeypatch.setitem(sys.modules, shared_memory._MODULE, module)
        shared_memory.wait_for_shared_memory()
    assert waited == [int]


@pytest.mark.parametrize(("missing", "workers"), [("PIL", 0), ("grain", 2)])
def test_missing_packages(monkeypatch, missing, workers):
    monkeypatch.setitem(sys.modules, missing, None)
    message = rf"{missing}.*pip install .mslice_jax\[imagenet\]"
    with pytest.raises(DataError, match=message):
        train_images(PICTURES, seed=0, workers=workers, **SMALL)


def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "numbers" / "out.json"
    settings = input_pipeline.Settings(
        workers=(0,), batch_size=2, rounds=1, batches=1, device=1e4, out=out
    )
    result = input_pipeline.main(settings)
    assert json.loads(out.read_text()) == result
    figures = result["workers"]["0"]
    assert figures["examples_per_second"] > 0
    assert 0 < figures["wait_share"] < 1


def run(program):
    """The finished program, with its output and that of its workers."""
    return subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )


# One program for all tests with processes: each takes seconds to start. It presses
# Ctrl-C on the way, which reaches the whole process group, as from a terminal. Shared
# memory is freed slowly, so that a program that does not wait would end meanwhile.
PROGRAM = """
import itertools, os, signal, sys, time
from multiprocessing import shared_memory
import numpy as np
sys.path.insert(0, {tests!r})
from test_images import PICTURES, SMALL, broken
from mslice_jax.data import DataError, eval_images, train_images

if __name__ == "__main__":
    unlink = shared_memory._posixshmem.shm_unlink
    shared_memory._posixshmem.shm_unlink = lambda name: (unlink(name), time.sleep(0.1))
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    stream = train_images(PICTURES, seed=3, start=2, workers=2, **SMALL)
    batches = [next(stream)]
    os.killpg(0, signal.SIGINT)
    batches += itertools.islice(stream, 8)
    images, labels = zip(*batches)
    np.savez({out!r}, images=images, labels=labels, pressed=pressed)
    stream.close()
    try:
        list(eval_images(broken(), workers=2, **SMALL))
    except DataError as error:
        print(error)
    forgotten = train_images(PICTURES, seed=3, workers=1, **SMALL)
    next(forgotten)
"""


@pytest.mark.nightly
def test_workers_change_no_batch_ignore_ctrl_c_and_end(tmp_path):
    pytest.importorskip("grain", reason="needs the extra imagenet")
    program, out = tmp_path / "program.py", tmp_path / "batches.npz"
    tests = str(pathlib.Path(__file__).parent)
    program.write_text(PROGRAM.format(tests=tests, out=str(out)))
    done = run(program)
    # Neither a worker nor the end of the program prints a complaint.
    assert (done.returncode, done.stderr) == (0, "")
    found = np.load(out)
    assert found["pressed"].tolist() == [1]
    batches = zip(found["images"], found["labels"], strict=True)
    assert_same(batches, steps(9, start=2))
    (line,) = done.stdout.splitlines()
    assert line.startswith("image 17 (n17.JPEG) of the pictures cannot be decoded")


KILLED = """
import multiprocessing, os, signal, sys
sys.path.insert(0, {tests!r})
from test_images import PICTURES, SMALL
from mslice_jax.data import DataError, train_images

if __name__ == "__main__":
    stream = train_images(PICTURES, seed=3, workers=1, **SMALL)
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    try:
        for _ in stream:
            pass
    except DataError as error:
        print(error, flush=True)
    stream = train_images(PICTURES, seed=3, workers=2, **SMALL)
    next(stream)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_worker_and_workers_of_a_killed_parent(tmp_path):
    pytest.importorskip("grain", reason="needs the extra imagenet")
    program = tmp_path / "program.py"
    program.write_text(KILLED.format(tests=str(pathlib.Path(__file__).parent)))
    # Workers share the streams: this waits until the last of them has ended.
    done = run(program)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("a process that reads images ended")
    assert "fewer --workers" in line
