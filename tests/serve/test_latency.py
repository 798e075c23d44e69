"""The latency table: what it holds, repairs, writes, and how it is corrected."""

import json
import math

import pytest

from mslice_jax.serve.latency import Latency, LatencyTable, TableError
from mslice_jax.serve.slow_down import SlowDown


def test_a_batch_runs_in_the_smallest_bucket_that_holds_it():
    table = LatencyTable({(1.0, 1): (3, 2), (1.0, 4): (7, 6)})
    assert [table.p99_ms(1.0, rows) for rows in (1, 2, 4)] == [3, 7, 7]
    assert table.median_ms(1.0, 3) == 6
    with pytest.raises(TableError, match="5 rows, but the largest batch is 4"):
        table.p99_ms(1.0, 5)


def test_a_larger_batch_and_a_longer_input_take_at_least_as_long():
    times = {(1, 16): 5, (1, 32): 4, (2, 16): 3, (2, 32): 9}
    table = LatencyTable({(1.0, *key): (ms, ms) for key, ms in times.items()})
    found = {key: table.p99_ms(1.0, *key) for key in times}
    assert found == {(1, 16): 5, (1, 32): 5, (2, 16): 5, (2, 32): 9}
    assert table.median_ms(1.0, 2, 16) == 3  # as measured


def test_a_wider_rate_runs_in_place_of_a_slower_narrower_one():
    times = {(0.25, 1): 9, (0.5, 1): 6, (1.0, 1): 8, (0.25, 2): 9, (0.5, 2): 9}
    times[1.0, 2] = 15
    table = LatencyTable({key: (ms, ms) for key, ms in times.items()})
    assert table.served(0.25, 1) == 0.5 and table.served(0.5, 1) == 0.5
    assert table.served(0.25, 2) == 0.5  # no slower, so the wider one
    assert table.served(0.25, 1, among=(0.25, 1.0)) == 1.0
    assert table.served(0.25, 1, among=(0.25,)) == 0.25
    assert table.ways(0.25).took(1) == pytest.approx(0.006)
    assert table.ways(0.25, among=(0.25,)).took(1) == pytest.approx(0.009)
    assert table.p99_ms(0.25, 1) == 9  # itself, as measured


def test_requests_of_several_rows():
    table = LatencyTable({(1.0, 2): (4, 4), (1.0, 4): (5, 5), (1.0, 8): (6, 6)})
    three = table.ways(1.0, rows=3)
    assert three.took(1) == 0.005 and three.took(2) == 0.006


def test_a_written_table_is_read_again(tmp_path):
    entries = {(0.5, 1, 16): Latency(2.5, 2.0), (1.0, 1, 16): Latency(5.0, 4.5)}
    table = LatencyTable(entries)
    table.scaled(3).write(tmp_path / "a.json")
    assert LatencyTable.read(tmp_path / "a.json").entries == table.entries
    flat = LatencyTable({(1.0, 1): (2.0, 1.0)})
    flat.write(tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == {
        "version": 1,
        "entries": [{"rate": 1.0, "batch": 1, "p99_ms": 2.0, "median_ms": 1.0}],
    }
    assert LatencyTable.read(tmp_path / "b.json").entries == flat.entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate,ms", "no latency table"),
        ("[1]", "no latency table"),
        ('{"version": 1, "entries": [{"rate": 1}]}', "no latency table: KeyError"),
        ('{"version": 2, "entries": []}', "of version 2.*reads version 1"),
        ('{"version": 1, "entries": []}', "at least one entry"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(TableError, match=message):
        LatencyTable.read(tmp_path / "table.json")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "at least one entry"),
        ({(0.5, 1): (1, 1), (1.0, 2): (1, 1)}, "is missing"),
        ({(1.0, 1): (0.0, 0.0)}, "above 0"),
        ({(1.0, 1): (math.nan, 1.0)}, "above 0"),
        ({(1.0, 1): (1, 1), (1.0, 1, 8): (1, 1)}, "some have none"),
    ],
)
def test_a_wrong_table_is_refused(entries, message):
    with pytest.raises(TableError, match=message):
        LatencyTable(entries)


def test_one_late_batch_moves_nothing_and_three_of_five_do():
    slow = SlowDown()
    assert [slow.observe(10, ms) for ms in (200, 10, 200, 10, 10)] == [1.0] * 5
    slow = SlowDown()
    assert [slow.observe(10, 30) for _ in range(3)] == [1.0, 1.0, 3.0]


def test_the_factor_falls_slowly_and_not_below_one():
    slow = SlowDown(window=1, decay=0.5)
    assert [slow.observe(1, ms) for ms in (5, 1, 1, 0.1)] == [5, 3, 2, 1.5]
    for _ in range(60):
        slow.observe(10, 1)
    assert slow.factor == pytest.approx(1.0)


def test_a_machine_that_rested_is_tried_anew():
    slow = SlowDown(forget_s=2.0)
    slow.observe(1, 5)
    for _ in range(2):
        slow.observe(1, 5)
    assert slow.after(2.0) == 5 and slow.after(2.1) == 1
    assert slow.observe(1, 5) == 1  # the batches before are forgotten, too


def test_a_slower_machine_is_as_a_slower_table():
    table = LatencyTable({(1.0, 1): (3, 2)})
    assert table.scaled(2).p99_ms(1.0, 1) == 6
    assert table.scaled(2).median_ms(1.0, 1) == 4
    assert table.factor == 1 and table.scaled(2).scaled(3).factor == 3
