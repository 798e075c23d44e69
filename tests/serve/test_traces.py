"""Traces: their moments, and files that can and cannot be read."""

import numpy as np
import pytest

from mslice_jax.serve import traces
from mslice_jax.serve.recorded import Recorded, read_csv, replay
from mslice_jax.serve.traces import TraceError

ALL = {
    "poisson": lambda seed: traces.poisson(50, 100, seed=seed),
    "gamma": lambda seed: traces.gamma(50, 100, cv=2, seed=seed),
    "mmpp": lambda seed: traces.mmpp(10, 90, 100, dwell_s=1, seed=seed),
    "step": lambda seed: traces.step([(50, 10), (50, 90)], seed=seed),
    "diurnal": lambda seed: traces.diurnal(50, 100, ratio=3, seed=seed),
}


@pytest.mark.parametrize("name", ALL)
def test_a_trace_ascends_has_its_mean_and_its_seed(name):
    times = ALL[name](3)
    assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 100
    assert len(times) == pytest.approx(5000, rel=0.2 if name == "mmpp" else 0.08)
    assert np.array_equal(times, ALL[name](3))
    assert not np.array_equal(times[:9], ALL[name](4)[:9])


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_has_its_coefficient_of_variation(cv):
    gaps = np.diff(traces.gamma(100, 200, cv=cv))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_mmpp_has_two_levels_that_change_at_random():
    times = traces.mmpp(100, 1600, 60, dwell_s=3, seed=1)
    counts = np.histogram(times, 600, range=(0, 60))[0]
    near = [np.mean(np.abs(counts - n) <= 5 * np.sqrt(n)) for n in (10, 160)]
    assert min(near) > 0.25 and sum(near) > 0.9
    changes = np.abs(np.diff(counts > 80)).sum()
    assert 8 <= changes <= 35  # twenty are expected


def test_diurnal_has_its_ratio_and_period():
    times = traces.diurnal(1000, 20, ratio=9, period_s=10)
    counts = np.histogram(times, 20)[0]
    # A sine between 200 and 1800; the bins beside trough and peak cover a tenth.
    assert counts[[0, 9, 10, 19]].max() < 350 and counts[[4, 5, 14, 15]].min() > 1600


@pytest.mark.parametrize(
    "make",
    [
        lambda: traces.poisson(-1, 10),
        lambda: traces.poisson(1, 0),
        lambda: traces.step([]),
        lambda: traces.gamma(1, 10, cv=0),
        lambda: traces.gamma(0, 10, cv=1),
        lambda: traces.mmpp(1, 2, 10, dwell_s=0),
        lambda: traces.diurnal(1, 10, ratio=0.5),
    ],
)
def test_settings_of_no_trace(make):
    with pytest.raises(TraceError, match="expected"):
        make()


# -- files


def file(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "3\n3.5\n6\n",
        "time\n3\n3.5\n6\n",
        "time,size\n3,x\n3.5,y\n6,z\n\n",
        "2023-11-16 18:17:03.0000000\n2023-11-16 18:17:03.5\n2023-11-16 18:17:06\n",
        "at\n2023-11-16T18:17:03Z\n2023-11-16T18:17:03.5Z\n2023-11-16T20:17:06+02:00\n",
    ],
)
def test_numbers_and_dates_are_read(tmp_path, text):
    found = read_csv(file(tmp_path, text))
    assert np.allclose(found.times, [0, 0.5, 3]) and found.counts is None


def test_columns_have_names(tmp_path):
    path = file(tmp_path, "id,when,n\n7,10,2\n8,20,0\n")
    found = read_csv(path, times="when", counts="n")
    assert found.times.tolist() == [0, 10] and found.counts.tolist() == [2, 0]
    with pytest.raises(TraceError, match="no column 'value'.*'id', 'when', 'n'"):
        read_csv(path, counts="value")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("time\n", "has a header and no rows"),
        ("<html>\n<p>no</p>\n", "line 2: expected seconds or a date, got '<p>no</p>'"),
        ("1\n3\n2\n", "line 3: times are not ascending: 2"),
        ("-1\n3\n", "line 1: a time is negative"),
        ("1\nnan\n", "line 2: expected seconds"),
        ("1\n2024-01-01\n", "line 2: numbers and dates are mixed"),
    ],
)
def test_a_file_of_no_trace(tmp_path, text, message):
    with pytest.raises(TraceError, match=message) as error:
        read_csv(file(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_count_below_nothing_and_bytes_of_no_text(tmp_path):
    for text in ("t,n\n1,-2\n", "t,n\n1\n", "t,n\n1,many\n"):
        with pytest.raises(TraceError, match="line 2: expected a count of at least 0"):
            read_csv(file(tmp_path, text), counts="n")
    path = tmp_path / "picture.csv"
    path.write_bytes(b"\x89PNG\r\n\x00\xff\xfe")
    with pytest.raises(TraceError, match="no CSV"):
        read_csv(path)


def test_a_replay_keeps_the_shape():
    times = np.sort(np.random.default_rng(0).uniform(0, 10, 8000) ** 2)
    shape = np.histogram(times, 10, range=(0, 100))[0] / 8000
    for per_second in (200, 2000):  # a part of the requests, and each several times
        found = replay(Recorded(times), per_second, 10, seed=1)
        assert len(found) == pytest.approx(per_second * 10, rel=0.05)
        assert (np.diff(found) >= 0).all() and found[0] >= 0 and found[-1] <= 10
        part = np.histogram(found, 10, range=(0, 10))[0] / len(found)
        assert np.abs(part - shape).max() < 0.02


def test_counts_fall_into_their_intervals():
    recorded = Recorded(np.array([0.0, 10, 20, 30]), np.array([10.0, 0, 30, 0]))
    found = replay(recorded, 1000, 4)
    counts = np.histogram(found, 4, range=(0, 4))[0]
    assert counts[1] == counts[3] == 0
    assert counts[0] == pytest.approx(1000, rel=0.15)
    assert counts[2] == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize(
    "recorded",
    [
        Recorded(np.zeros(3)),
        Recorded(np.zeros(1), np.ones(1)),
        Recorded(np.arange(3.0), np.zeros(3)),
    ],
)
def test_a_record_of_nothing_cannot_be_replayed(recorded):
    with pytest.raises(TraceError, match="the record"):
        replay(recorded, 10, 10)


@pytest.mark.parametrize(
    ("name", "counts", "rows"),
    [
        ("AzureLLMInferenceTrace_code.csv", None, 8819),
        ("AzureLLMInferenceTrace_conv.csv", None, 19366),
        ("Twitter_volume_AAPL.csv", "value", 15902),
        ("elb_request_count_8c0756.csv", "value", 4032),
    ],
)
def test_recorded_traces_are_read(shared, name, counts, rows):
    recorded = read_csv(shared(f"data/traces/{name}"), counts=counts)
    assert len(recorded.times) == rows and recorded.times[0] == 0
    found = replay(recorded, 100, 30)
    assert len(found) == pytest.approx(3000, rel=0.05)
    assert found[0] >= 0 and found[-1] <= 30
