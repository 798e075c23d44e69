"""Benchmarks run, and count the same work on both sides; times are not tested."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import analysis, narrow_vs_hand, train_step


def test_narrow_vs_hand(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = narrow_vs_hand.Config(
        models=("resnet11",),
        rates=(0.5,),
        batch_sizes=(2,),
        image_size=8,
        rounds=2,
        seconds=0.0,
        out=tmp_path / "numbers" / "out.json",
    )
    result = narrow_vs_hand.main(config)
    assert config.out is not None
    assert json.loads(config.out.read_text()) == result
    (row,) = result["rows"]
    assert row["flops"] == 1.0  # the same program as by hand
    assert min(row["hand_ms"], row["extracted"], row["repeated"], row["full"]) > 0
    assert "resnet11" in capsys.readouterr().out


def test_analysis(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = analysis.Config(
        models=("resnet11", "decoder1"), rounds=1, out=tmp_path / "out.json"
    )
    result = analysis.main(config)
    assert config.out is not None
    assert json.loads(config.out.read_text()) == result
    for row in result["rows"]:
        assert row["equations"] > 50
        assert row["analysis"] > 0
    assert "decoder1" in capsys.readouterr().out


@pytest.mark.nightly
def test_train_step(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_step.Config(
        depth=8,
        batch_size=2,
        image_size=8,
        rates=(1.0, 0.5),
        compiled=(1.0,),
        rounds=1,
        start=False,
        out=tmp_path / "out.json",
    )
    result = train_step.main(config)
    assert config.out is not None
    assert json.loads(config.out.read_text()) == result
    # A half is about a quarter of the full work.
    assert 1.2 < result["step"]["predicted"] < 1.4
    assert result["compile"]["all"] > 0
    assert "ResNet-8" in capsys.readouterr().out


@pytest.mark.parametrize("name", ("vgg11", "resnet29"))
def test_hand_written_networks_accept_the_models_weights(name: str) -> None:
    model, by_hand = narrow_vs_hand.networks(name)
    x = jnp.zeros((1, 8, 8, 3))
    key = jax.random.key(0)
    zoo = jax.eval_shape(model.init, key, x)["params"]
    assert jax.eval_shape(by_hand(1.0).init, key, x)["params"] == zoo


PAIRS = (
    "decoder", "fast_cnn", "gru", "lstm", "mobilenet_v2", "resnet29", "unet", "vgg11",
    "vit",
)  # fmt: skip


def test_pairs_are_tested() -> None:
    pytest.importorskip("torch", reason="PyTorch (extra pytorch) is not installed")
    from experiments.benchmarks.pairs import PAIRS as pairs

    assert sorted(pairs) == sorted(PAIRS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (name != "gru"))
        for name in PAIRS
    ],
)
def test_both_of_a_pair_compute_the_same(name: str) -> None:
    pytest.importorskip("torch", reason="PyTorch (extra pytorch) is not installed")
    import torch

    import mslice_jax as ms
    from experiments.benchmarks.pairs import PAIRS as pairs
    from experiments.benchmarks.pairs.sides import Ours, Theirs, agree

    pair = pairs[name](True)
    net = pair.network()
    theirs = Theirs(pair, net, torch.contiguous_format)
    agree(Ours(pair, net, ms.jit), theirs, batch=2)


@pytest.mark.nightly
def test_vs_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides must compute the same before they are timed: `compare` asserts it."""
    pytest.importorskip("torch", reason="PyTorch (extra pytorch) is not installed")
    from experiments.benchmarks import vs_pytorch

    config = vs_pytorch.Config(
        only=("vgg11",), batches=(1,), rounds=1, at_least=0.0, tiny=True
    )
    result = vs_pytorch.main(config)
    assert [row["task"] for row in result["rows"]] == [
        "step", *(f"inference {rate:g}, batch 1" for rate in (1.0, 0.5, 0.25)),
    ]  # fmt: skip
    assert all(row["ms_jit"] > 0 for row in result["rows"])
    slowest = min(row["ms_jit"] for row in result["rows"][1:])
    assert result["summary"]["inference ms_jit"]["worst"] == slowest
    assert "vgg11" in capsys.readouterr().out


@pytest.mark.nightly
def test_profile_of_vs_pytorch() -> None:
    pytest.importorskip("torch", reason="PyTorch (extra pytorch) is not installed")
    from experiments.benchmarks import vs_pytorch

    config = vs_pytorch.Config(only=("resnet29",), tiny=True, profile=True)
    shares = vs_pytorch.main(config)["profile"]["resnet29"]
    assert any("conv" in kind for kind in shares)
    assert 0.5 < sum(shares.values()) <= 1.0 + 1e-9
