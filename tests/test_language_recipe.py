"""The recipe for language models as a command: files, resuming, errors."""

import json
import math
import signal

import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments import evaluate, language_model
from experiments.recipe import main
from experiments.screen import Bar
from experiments.text import TEXT
from mslice_jax import data
from mslice_jax.serve import starting
from mslice_jax.serve.options import options
from tests.refusals import assert_refused

TINY = "--rates 1 0.5 --num-random 0 --units 8 --layers 1 --epochs 1"


def run(capsys, workdir, *args):
    """(exit code, standard output, standard error)."""
    given = [*TINY.split(), *map(str, args), "--workdir", str(workdir)]
    code = main(language_model.RECIPE, given)
    return code, *capsys.readouterr()


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "song.txt"
    lines = [f"{n} green bottles hanging on the wall\n" for n in range(60)]
    file.write_text("".join(lines))
    return file


def test_the_text_that_ships_is_the_play():
    text = TEXT.read_text(encoding="utf-8")
    assert len(text) == 133_465
    assert "But, soft! what light through yonder window breaks?" in text
    assert text.rstrip().endswith("Than this of Juliet and her Romeo.")


def test_a_shortened_default_run(capsys, tmp_path, song):
    # 120,121 characters: nine batches of 64 rows of 200.
    workdir = tmp_path / "run"
    args = ["--batch-size", 64, "--length", 200]
    code, screen, error = run(capsys, workdir, *args)
    assert code == 0, error
    assert "lstm of 1 x 8 on Text(romeo_and_juliet.txt: 120121 training" in screen
    rows = [line.split() for line in screen.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["1", "0.5"]

    found = summary(workdir)
    assert list(found["rates"]["0.5"]) == [
        "perplexity", "loss", "parameters", "flops", "latency_ms"
    ]  # fmt: skip
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == 9
    for rate, values in found["rates"].items():
        assert values["perplexity"] == pytest.approx(math.exp(values["loss"]), rel=1e-5)
        assert 2 < values["perplexity"] < 80  # 62 for uniform predictions
        for name in ("perplexity", "loss"):
            kept = lines[-1][f"test_{name}/{rate}"]
            assert kept == pytest.approx(values[name], rel=1e-5)
    # 61 characters, the end of a line and the unknown; two kernels of gates. Tables of
    # eight rows: biases of gates, gains of both kernels, and of what the softmax reads.
    size = len(json.loads((workdir / "vocabulary.json").read_text())["entries"])
    assert size == 62
    expected = 62 * 8 + 2 * 8 * 32 + 8 * 3 * 32 + 8 * 8
    assert found["rates"]["1.0"]["parameters"] == expected
    for picture in ("perplexity_vs_flops.png", "perplexity_over_epochs.png"):
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")

    # The saved network takes any number of texts.
    net = ms.load(workdir, language_model.build(_settings(workdir), 62, carry=False))
    assert ms.slice_apply(net, jnp.zeros((3, 7), int), 0.5).shape == (3, 7, 62)

    # The server's too, with its model; its programs have rows of one length.
    command = ["--checkpoint", str(workdir), "--lengths", "4,8"]
    flags = options([*command, "--model-from", "experiments.evaluate:model"])
    executor = starting.executor(flags, starting.network(flags).net)
    (tokens,), (logits,) = executor.inputs, executor.outputs
    assert (tokens.name, tokens.dtype, tokens.shape) == ("tokens", "int32", (-1, -1))
    assert logits.shape == (-1, -1, 62)
    flags = options(command)
    with pytest.raises(ValueError, match="inputs of one length. Give the model too"):
        starting.executor(flags, starting.network(flags).net)

    # Evaluated again: the same; of another text, with the run's vocabulary.
    before = sorted(workdir.rglob("*"))
    output = tmp_path / "again.json"
    assert evaluate.main([str(workdir), "--output", str(output)]) == 0
    again = json.loads(output.read_text())["rates"]
    for rate, values in found["rates"].items():
        assert again[rate]["loss"] == values["loss"]
    other = [str(workdir), "--text", str(song), "--output", str(output)]
    assert evaluate.main(other) == 0
    elsewhere = json.loads(output.read_text())["rates"]
    assert elsewhere["1.0"]["parameters"] == expected
    assert elsewhere["1.0"]["loss"] != again["1.0"]["loss"]
    assert sorted(workdir.rglob("*")) == before
    capsys.readouterr()
    assert evaluate.main([str(workdir), "--max-test-examples", "3"]) == 2
    assert "--max-test-examples has no effect on a run" in capsys.readouterr().err


def test_a_run_of_a_narrow_width_alone_is_evaluated_again(capsys, tmp_path, song):
    args = ["--text", song, "--batch-size", 4, "--length", 64, "--rates", 0.5]
    code, _, error = run(capsys, tmp_path, *args)
    assert code == 0, error
    output = tmp_path / "again.json"
    assert evaluate.main([str(tmp_path), "--output", str(output)]) == 0
    again = json.loads(output.read_text())["rates"]
    vocab = len(json.loads((tmp_path / "vocabulary.json").read_text())["entries"])
    # Half of 8 units: an embedding, two kernels, the biases of four gates.
    assert again["0.5"]["parameters"] == vocab * 4 + 2 * 4 * 16 + 16
    assert again["0.5"]["loss"] == summary(tmp_path)["rates"]["0.5"]["loss"]


def _settings(workdir):
    return evaluate._run(workdir, language_model.RECIPE)[1]


@pytest.mark.nightly
def test_a_run_that_was_stopped_ends_with_the_same_numbers(
    capsys, tmp_path, monkeypatch, song
):
    args = "--model gru --tokens words --batch-size 4 --length 8 --epochs 2"
    args = [*args.split(), "--text", song]
    code, _, error = run(capsys, tmp_path / "whole", *args)
    assert code == 0, error
    stepped = Bar.stepped

    def press(self, step, losses, examples_per_second):
        stepped(self, step, losses, examples_per_second)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "stepped", press)
        code, screen, _ = run(capsys, tmp_path / "parts", *args)
    assert code == 143
    assert "Step 6 is saved" in screen
    code, screen, _ = run(capsys, tmp_path / "parts", *args)
    assert code == 0
    assert "Resumed at step 6" in screen
    whole, parts = (summary(tmp_path / name)["rates"] for name in ("whole", "parts"))
    for rate in whole:
        assert whole[rate]["loss"] == parts[rate]["loss"]


@pytest.mark.nightly
def test_a_decoder_is_trained_too(capsys, tmp_path, song):
    args = "--model decoder --heads 4 --kv-heads 2 --layers 2 --scan --tokens words"
    args = [*args.split(), "--vocabulary", 20, "--batch-size", 4, "--length", 8]
    args += ["--epochs", 5, "--lr", 0.03, "--text", song]
    code, screen, error = run(capsys, tmp_path, *args)
    assert code == 0, error
    assert "decoder of 2 x 8 on Text(song.txt: 440 training" in screen
    perplexities = [v["perplexity"] for v in summary(tmp_path)["rates"].values()]
    assert all(1 < x < 10 for x in perplexities)  # 20 for who knows nothing


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "gru", "--heads", "4"], "--heads has no effect: .* is gru"),
        (["--scan"], "--scan has no effect: it is for --model decoder"),
        (["--accumulate", "2"], "carries from batch to batch cannot be divided"),
        (["--model", "decoder", "--heads", "3"], "kv_heads that divides heads=3"),
        (["--dropout", "1"], r"--dropout in \[0, 1\), got 1"),
        (["--vocabulary", "1"], "--vocabulary of at least 2, got 1"),
        (["--length", "0"], "--length of at least 1"),
        (["--length", "9000"], r"\(--length\) needs a text of 144001 tokens"),
        (["--text", "nowhere.txt"], "cannot read the text nowhere.txt"),
        (["--text", "."], "one file in .* with 'train' in its name"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    capsys, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    done = run(capsys, tmp_path / "work", *args)
    assert_refused(done, message, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\xff\xfe", "not a text in UTF-8"), (b"a", "has 0 tokens")],
)
def test_a_text_that_cannot_be_read_leaves_nothing(capsys, tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    code, _, error = run(capsys, tmp_path / "work", "--text", file)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_every_model_has_defaults_that_can_be_built():
    kind = language_model.RECIPE.kind
    for given in ([], ["--text", "x"]):
        for model in ("lstm", "gru", "decoder"):
            settings = _resolved("--model", model, *given)
            kind.check(language_model.RECIPE, settings)
            assert settings.lr == kind.defaults(None, settings).lr
    assert _resolved("--optimizer", "sgd").lr == 0.5
    assert _resolved("--optimizer", "lion").lr == 3e-4


def _resolved(*args):
    from experiments.settings import parse, resolve

    kind = language_model.RECIPE.kind
    settings = parse("language_model", "", list(args), kind.settings)
    return resolve(settings, "language_model", kind.defaults(None, settings))


def test_a_held_out_text_counts_every_token_once():
    # A decoder's rows overlap; the context of a row does not count again.
    tokens = np.arange(30)
    batches = data.held_out_batches(tokens, 2, 6, overlap=3)
    assert sum(mask.sum() for _, _, mask in batches) == 29
