"""The pictures are drawn, of what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from mslice_jax.serve.pictures import plot_attainment, plot_serving
from mslice_jax.serve.simulator import Simulation


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    figures, write = [], Figure.savefig

    def note(figure, path):
        figures.append(figure)
        write(figure, path)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


def test_serving_over_time(tmp_path, drawn):
    # Two bins of one second: two requests, then three of which one is shed.
    arrived = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    finished = arrived + np.array([0.1, 0.3, 0.2, np.nan, 0.2])
    shed = np.isnan(finished)
    rate = np.array([1.0, 0.5, 0.25, np.nan, 0.25])
    done = Simulation(
        arrived=arrived,
        deadline=arrived + 0.25,
        started=np.where(shed, np.nan, arrived),
        finished=finished,
        rate=rate,
        batch=np.where(shed, 0, 1),
    )
    plot_serving(tmp_path / "run.png", done, title="five", bins=2)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    came, rates, latency, missed = drawn[0].axes
    assert came.patches[0].get_data().values.tolist() == [2, 3]
    assert rates.patches[0].get_data().values.tolist() == [0.75, 0.25]
    assert np.allclose(latency.lines[0].get_ydata(), [200, 200])
    assert np.allclose(latency.lines[-1].get_ydata(), 250)  # T
    # One of two was late, one of three got no answer.
    assert np.allclose(missed.patches[0].get_data().values, [50, 100 / 3])


def test_share_in_time_against_accuracy(tmp_path, drawn):
    policies = {"elastic": (1.0, 0.94), "fixed 1": (0.4, 0.95), "fixed .5": (0.9, 0.9)}
    plot_attainment(tmp_path / "share.png", policies, title="three")
    fixed, elastic = drawn[0].axes[0].lines
    assert np.allclose(fixed.get_xydata(), [[90, 90], [95, 40]])
    assert np.allclose(elastic.get_xydata(), [[94, 100]])
    with pytest.raises(ValueError, match="at least one policy"):
        plot_attainment(tmp_path / "share.png", {}, title="none")
