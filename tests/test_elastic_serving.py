"""The experiment of the server: its parts by hand, and a short run of the command."""

import collections
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments.benchmarks import serving
from experiments.benchmarks.serving import in_hindsight
from experiments.elastic_serving import main
from experiments.serving.costs import highest, http
from experiments.serving.journal import Journal
from experiments.serving.workloads import workloads
from mslice_jax.serve import LatencyTable
from tests.refusals import assert_refused


def mlp(p, x):
    return {"y": jnp.tanh(x @ p["w1"]) @ p["w2"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network, and accuracies that are made up."""
    folder = tmp_path_factory.mktemp("network")
    p = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
    ms.save(
        ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.5, 1.0)),
        folder / "network.mslice",
    )
    told = {"rates": {"0.5": {"accuracy": 0.5}, "1.0": {"accuracy": 0.75}}}
    (folder / "summary.json").write_text(json.dumps(told))
    return folder


def test_a_short_run_and_one_that_goes_on(saved, tmp_path, capsys):
    flags = f"--checkpoint {saved} --workdir {tmp_path} --batches 1 2 --repeats 2"
    flags += " --slo-ms 20000 --capacity 40 --capacity-seconds 0.4 --seconds 0.5"
    flags += " --swing-seconds 0.6 --policies elastic --tries 1"
    assert main(flags.split()) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(row["trace"], row["policy"]) for row in found["rows"]] == [
        (trace, policy)
        for trace in ("Poisson", "Gamma", "MMPP", "diurnal")
        for policy in ("fixed 0.5", "fixed 1.0", "elastic")
    ]
    for row in found["rows"]:
        assert row["difference"] == row["in_time"] - row["simulated"]
        # Few requests, within twenty seconds each: nobody is late.
        assert row["in_time"] == 100.0
        if row["policy"] != "elastic":
            assert row["accuracy"] == (50.0 if row["policy"] == "fixed 0.5" else 75.0)
    assert found["capacity_per_second"] == 40 and set(found["http"]["each_ms"]) == {
        "0.5",
        "1",
    }
    for picture in ("serving.png", "attainment_Poisson.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    assert "| Gamma | fixed 1.0 | 100.00 |" in (tmp_path / "table.md").read_text()
    runs = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(runs) == 1 + 12 + 3  # alone, what HTTP costs, and the picture

    # Other settings of the network are not mixed with these.
    capsys.readouterr()
    assert main([*flags.split(), "--batches", "1"]) == 2
    assert "has runs with batches [1, 2], not [1]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--policies widest", "expected some of"),
        ("--load 0", "--load is above 0"),
        ("--epochs 0", "--epochs is at least 1"),
        ("--model a:b", "go with --checkpoint"),
        ("--traces .", "there is no AzureLLMInferenceTrace_code"),
        ("--server-core 9999", "--server-core is below"),
    ],
)
def test_flags_that_do_not_fit(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main([*flags.split(), "--workdir", "new"])
    screen = capsys.readouterr()
    assert_refused((code, screen.out, screen.err), words, tmp_path)


@pytest.mark.parametrize("limit", [7.0, 55.0, 1000.0])
def test_the_highest_load_is_one_that_was_sustained(limit):
    tried = []

    def sustains(load):
        tried.append(load)
        return load <= limit

    found = highest(sustains, 50)
    assert found in tried and limit / 1.05 <= found <= limit
    assert len(tried) == len(set(tried)) <= 16
    assert highest(lambda load: False, 50, tries=5) == 0


def test_what_http_takes_is_what_batches_leave(tmp_path):
    # Of 3 ms between the first that is due and the last answer, two batches of one took
    # 2 by the table: a millisecond is left for four requests. Of the wide rate nothing
    # is left; and of 100 ms no more than is added to one who is alone.
    table = LatencyTable({(0.25, 1): (1, 1), (0.5, 1): (1, 1), (1.0, 1): (2, 2)})
    walls = {"fixed 0.25": 0.003, "fixed 0.5": 0.1, "fixed 1.0": 0.003}
    ran, loads = collections.Counter(), {}

    def drive(policy, arrivals, warm):
        assert warm == 0
        rate = float(policy.removeprefix("fixed "))
        ran[(rate, 1)] += 2
        loads[rate] = (len(arrivals) - 1) / arrivals[-1]
        count = 4
        due = np.zeros(count)
        answered = np.array([np.nan, 0.001, walls[policy], 0.002])
        return SimpleNamespace(due=due, answered=answered, void=None)

    stand = SimpleNamespace(
        journal=Journal(tmp_path / "runs.jsonl", {}),
        table=table,
        alone_s=0.002,
        capacity=500.0,  # 2 ms: one of the network, and another one
        widths=tuple(walls),
        options=SimpleNamespace(capacity_seconds=20.0),
        run=lambda *_: {"measured": {"p50_ms": 3.5, "void": None}},
        serving=lambda _: SimpleNamespace(batches=lambda: dict(ran)),
        drive=drive,
    )
    found = http(stand)
    assert found["added_ms"] == pytest.approx(1.5) and found["void"] is None
    expected = {"0.25": 0.25, "0.5": 1.5, "1": 0.0}
    assert found["each_ms"] == pytest.approx(expected)
    # More than the core can do, and no less than the traces have on the average.
    assert loads[0.25] == pytest.approx(1.3 * 500, rel=0.05)
    assert loads[1.0] == pytest.approx(1.3 * 1000 / 3, rel=0.05)
    assert http(stand) is not None and len(loads) == 3  # measured once


def test_a_journal_that_was_torn(tmp_path):
    path = tmp_path / "runs.jsonl"
    Journal(path, {"t": 1}).add("a", {"x": 1})
    Journal(path, {"t": 1}).add("b", {"x": 2})
    path.write_text(path.read_text() + '{"key": "c", "x"')  # killed in the midst
    again = Journal(path, {"t": 1})
    assert again.get("b") == {"key": "b", "x": 2} and again.get("c") is None
    again.add("c", {"x": 3})
    assert Journal(path, {"t": 1}).get("c") == {"key": "c", "x": 3}
    with pytest.raises(ValueError, match="has runs with t 1, not 2"):
        Journal(path, {"t": 2})


@pytest.mark.parametrize("recorded", [False, True])
def test_four_loads_of_the_mean_that_was_asked_for(recorded, shared):
    loads = workloads(shared("data/traces") if recorded else None)
    assert len(loads) == 4
    for arrivals_of in loads.values():
        arrivals = arrivals_of(200.0, 10.0, 0)
        assert arrivals[0] >= 0 and arrivals[-1] <= 10
        assert (np.diff(arrivals) >= 0).all()
        assert len(arrivals) == pytest.approx(2000, rel=0.6 if not recorded else 0.1)


def test_the_best_width_in_hindsight_by_hand():
    told = in_hindsight(
        {"in_time": 0.9995, "accuracy": 0.93},
        shares=[1.0, 0.999, 0.7, 0.2],
        accuracy=[0.90, 0.92, 0.94, 0.95],
    )
    assert told["best"] == 1 and told["holds"] and told["void"] is None
    assert told["points"] == pytest.approx(29.95) and told["gain"] == pytest.approx(1)
    few = in_hindsight({"in_time": 0.9995, "accuracy": 0.93}, [1.0, 0.75], [0.90, 0.94])
    assert not few["holds"] and few["points"] == pytest.approx(24.95)
    for elastic in ({"in_time": 0.99, "accuracy": 0.93}, {"in_time": 1.0}):
        assert not in_hindsight(elastic, [1.0, 0.5], [0.90, 0.94])["holds"]
    full = in_hindsight({"in_time": 1.0, "accuracy": 0.9}, [1.0, 1.0], [0.8, 0.9])
    assert "full" in full["void"] and not full["holds"]
    none = in_hindsight({"in_time": 1.0, "accuracy": 0.9}, [0.9, 0.5], [0.8, 0.9])
    assert "no fixed width" in none["void"]


@pytest.mark.nightly
def test_the_claims(saved, tmp_path, capsys):
    flags = f"--checkpoint {saved} --workdir {tmp_path} --batches 1 2 --repeats 2"
    flags += " --slo-ms 20000 --capacity 40 --capacity-seconds 0.4 --seconds 0.9"
    flags += f" --out {tmp_path / 'out.json'} --tries 1 --seeds 1 --dwell 0.2"
    flags += " --claims http step bursts"
    assert serving.main(flags.split()) == 1
    found = json.loads((tmp_path / "out.json").read_text())["claims"]
    assert set(found) == {"http", "step", "bursts"}
    assert found["step"]["measured"]["status"].keys() == {"200"}
    # Twenty seconds are enough for the full width.
    assert "the best fixed width is the full one" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_server_that_does_not_start(tmp_path, capsys):
    flags = ["--checkpoint", str(tmp_path / "none"), "--workdir", str(tmp_path / "new")]
    assert main(flags) == 2
    assert "the server ended: error: --checkpoint" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_network_that_is_trained(tmp_path):
    flags = f"--network tiny --epochs 1 --workdir {tmp_path} --train-only"
    assert main(flags.split()) == 0
    told = json.loads((tmp_path / "summary.json").read_text())["rates"]
    assert set(told) == {"0.25", "0.5", "0.75", "1.0"}
    assert (tmp_path / "network.mslice").exists()
