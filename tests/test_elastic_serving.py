"""The experiment of the server: its parts by hand, and a short run of the command."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments.benchmarks import serving
from experiments.benchmarks.serving import in_hindsight
from experiments.elastic_serving import main
from experiments.serving.costs import highest
from experiments.serving.journal import Journal
from experiments.serving.predicted import predicted, with_http
from experiments.serving.workloads import workloads
from mslice_jax.serve import LatencyTable, fixed
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
    flags += " --slo-ms 5000 --capacity 40 --capacity-seconds 0.4 --seconds 0.5"
    flags += " --swing-seconds 0.6 --policies elastic --tries 1"
    assert main(flags.split()) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(row["trace"], row["policy"]) for row in found["rows"]] == [
        (trace, policy)
        for trace in ("Poisson", "Gamma", "MMPP", "diurnal")
        for policy in ("fixed 0.5", "fixed 1", "elastic")
    ]
    for row in found["rows"]:
        assert row["difference"] == row["in_time"] - row["simulated"]
        # Half a minute's requests within five seconds each: nobody is late.
        assert row["in_time"] == 100.0
        if row["policy"] != "elastic":
            assert row["accuracy"] == (50.0 if row["policy"] == "fixed 0.5" else 75.0)
    assert found["capacity_per_second"] == 40 and found["http"]["http_ms"] >= 0
    for picture in ("serving.png", "attainment_Poisson.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    assert "| Gamma | fixed 1 | 100.00 |" in (tmp_path / "table.md").read_text()
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


def test_the_simulator_counts_http_as_time_of_the_device():
    table = LatencyTable({(1.0, 1): (10, 10), (1.0, 4): (35, 35)})
    heavy = with_http(table, 0.002)
    assert heavy.batches == (1, 2, 3, 4)
    assert [heavy.median_ms(1.0, n) for n in (1, 2, 3, 4)] == [12, 39, 41, 43]
    # One after the other, and 30 ms for all three: with 10 ms each they would be there.
    # After two times 12 ms there is no time for one of them.
    done = predicted(
        fixed(1.0, slo_s=0.030),
        np.zeros(3),
        table,
        slo_s=0.030,
        http_s=0.002,
        waits_s=0.002,
    )
    np.testing.assert_allclose(np.sort(done.finished), [0.012, 0.024, np.nan])


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
    flags += " --slo-ms 5000 --capacity 40 --capacity-seconds 0.4 --seconds 0.9"
    flags += f" --seeds 1 --dwell 0.2 --out {tmp_path / 'out.json'} --tries 1"
    assert serving.main(flags.split()) == 1
    found = json.loads((tmp_path / "out.json").read_text())["claims"]
    assert set(found) == {"http", "half", "step", "bursts"}
    assert found["step"]["measured"]["status"].keys() == {"200"}
    # Five seconds are enough for the full width.
    assert "the best fixed width is the full one" in capsys.readouterr().out


@pytest.mark.nightly
def test_the_network_that_is_trained(tmp_path):
    flags = f"--network tiny --epochs 1 --workdir {tmp_path} --train-only"
    assert main(flags.split()) == 0
    told = json.loads((tmp_path / "summary.json").read_text())["rates"]
    assert set(told) == {"0.25", "0.5", "0.75", "1.0"}
    assert (tmp_path / "network.mslice").exists()
