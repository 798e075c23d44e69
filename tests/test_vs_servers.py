"""The comparison of servers, without the rivals: search, cells, programs, report."""

import json

import numpy as np
import pytest

import mslice_jax as ms
from experiments.benchmarks import vs_servers
from experiments.benchmarks.rivals import cells, network, program, report
from experiments.benchmarks.rivals.contenders import Contender, Place
from experiments.benchmarks.rivals.search import Found, bisect, walk
from experiments.serving.journal import Journal
from mslice_jax.serve import LatencyTable


@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_both_searches_find_where_it_ends(count):
    for first_that_fails in range(count + 1):
        highest = first_that_fails - 1 if first_that_fails else None
        fails = first_that_fails if first_that_fails < count else None
        asked = []

        def holds(level, below=first_that_fails, asked=asked):
            asked.append(level)
            return level < below

        assert bisect(count, holds) == Found(highest, fails)
        assert len(set(asked)) == len(asked) <= np.log2(count) + 1
        for start in range(count):
            assert walk(count, start, holds) == Found(highest, fails)


def test_a_void_run_ends_a_search():
    assert bisect(7, lambda level: None if level == 5 else True) == Found(3, None, True)
    assert walk(7, 4, lambda level: None if level == 3 else False).void


def test_the_rivals_run_what_we_run(tmp_path):
    network.prepare(tmp_path, "TINY")
    expected = np.load(tmp_path / "logits.npy")
    # By the network as Flax runs it, at full width.
    net = ms.load(tmp_path / "network.mslice", network.TINY)
    images = network.images()
    flax = network.TINY.apply(net.variables, images)
    np.testing.assert_allclose(expected, flax, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3  # images can be told apart
    full = program.FullWidth(tmp_path, "TINY", 3)
    for rows in (1, 2, 3):
        bodies = [image.tobytes() for image in images[:rows]]
        found = full(program.batch(bodies))
        np.testing.assert_allclose(found, expected[:rows], atol=1e-5)


def bench_of(tmp_path, ran, monkeypatch):
    place = Place(folder=tmp_path, network="TINY", core=None)
    journal = Journal(tmp_path / "cells.jsonl", {"slo_ms": 100.0})
    bench = cells.Bench(place, journal, 100.0, say=lambda text: None)
    lost = {"in_time": 0.9, "p99_of_all_ms": None}

    def run(contender, per_second, seconds, seed):
        return {**lost, "void": ran.pop(0)}

    monkeypatch.setattr(bench, "_run", run)
    return bench


def test_cells_are_kept_and_void_ones_tried_again(tmp_path, monkeypatch):
    mosec = Contender(name="mosec", rows=4, wait_ms=1)
    ran = ["late", None, "late", "late", "late"]
    bench = bench_of(tmp_path, ran, monkeypatch)
    assert cells.holds(bench.cell(mosec, 5.0, 1.0, 0)) is False
    assert cells.holds(bench.cell(mosec, 6.0, 1.0, 0)) is None
    assert not ran
    # Another run goes on: what counted is there, what was void is tried again.
    again = bench_of(tmp_path, [None], monkeypatch)
    assert cells.holds(again.cell(mosec, 5.0, 1.0, 0)) is False
    assert cells.holds(again.cell(mosec, 6.0, 1.0, 0)) is False
    lines = [json.loads(x) for x in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 6 and lines[1]["setting"] == "4 x 1 ms"
    # Another setting is another cell.
    with pytest.raises(IndexError):
        again.cell(Contender(name="mosec", rows=8, wait_ms=1), 5.0, 1.0, 0)


def test_the_best_setting_and_what_was_asked_for(tmp_path, monkeypatch):
    ours = Contender(name="ours")
    few, many = (Contender(name="mosec", rows=n, wait_ms=1) for n in (2, 8))
    lit = Contender(name="litserve", rows=2, wait_ms=1)
    screened = {
        ours: Found(2, 3),
        few: Found(1, 2),
        many: Found(2, 3),
        lit: Found(0, 1),
    }
    best = report.best_of_each(screened)
    assert list(best) == [ours, many, lit]

    place = Place(folder=tmp_path, network="TINY", core=None)
    journal = Journal(tmp_path / "cells.jsonl", {"slo_ms": 100.0})
    bench = cells.Bench(place, journal, 100.0, say=lambda text: None)
    grid = [10.0, 20.0, 30.0, 40.0]
    seen = {"p50_ms": 5.0, "p99_of_all_ms": 70.0, "in_time": 0.995, "void": None}
    monkeypatch.setattr(bench, "_run", lambda *_: seen)
    table = LatencyTable({(r, 1): (40 * r, 40 * r) for r in (0.5, 1.0)})
    beyond = [{"per_second": 160.0, "in_time": 0.9995, "void": None, "rates": {"1": 3}}]

    def result(final, beyond=beyond):
        config = vs_servers.Config()
        return report.result(
            config, bench, table, grid, screened=screened, final=final, beyond=beyond
        )

    found = result(best)
    assert list(found["asked"].values()) == [True, True]
    text = report.markdown(found)
    assert "| ours | by the policy | 30.0/s | 40.0/s | 5.0 ms | 70.0 ms |" in text
    assert "Elastic at 160.0/s: 99.95 % in time (answers by rate 1: 3)" in text
    json.dumps(found)
    less = {ours: Found(1, 2), many: Found(2, 3)}
    worse = [{**beyond[0], "in_time": 0.998}]
    assert list(result(less, worse)["asked"].values()) == [False, False]
    void = {ours: Found(2, 3, void=True), many: Found(2, 3)}
    assert list(result(void, [])["asked"].values()) == [None, None]
    no_end = {ours: Found(3, None), many: Found(3, None)}
    assert list(result(no_end, [])["asked"].values()) == [None, None]
    nobody = {ours: Found(None, 0), many: Found(None, 0)}
    assert list(result(nobody, [])["asked"].values()) == [None, None]
    assert "| 1 | 40.0 ms |" in report.table_of(table)


def test_missing_rivals_are_named(monkeypatch):
    monkeypatch.setattr(
        vs_servers.importlib.util,
        "find_spec",
        lambda name: None if name == "mosec" else name,
    )
    with pytest.raises(ImportError, match=r"mosec not installed.*mslice_jax\[rivals\]"):
        vs_servers.check_packages(("mosec", "litserve"))
    vs_servers.check_packages(("litserve",))
    with pytest.raises(ValueError, match="expected mosec, litserve"):
        vs_servers.check_packages(("triton",))
