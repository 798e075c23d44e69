"""Serve a network whose width follows the load.

An executor holds a program for every rate and size of a batch. A policy says which
requests run now and at which rate; a latency table says what that takes; a trace says
when requests come; and `simulate` plays them on a virtual clock. An engine runs them
behind a queue, and ``python -m mslice_jax.serve`` puts that behind HTTP;
`mslice_jax.serve.ray` runs several of them. A cascade ranks many candidates with
growing width. Names are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Answer as Answer
    from .answers import Draining as Draining
    from .answers import Failed as Failed
    from .answers import Full as Full
    from .answers import Late as Late
    from .answers import Refused as Refused
    from .answers import Watcher as Watcher
    from .baselines import SlackFit as SlackFit
    from .baselines import Window as Window
    from .cascade import Cascade as Cascade
    from .elastic import Elastic as Elastic
    from .elastic import LatencyFirst as LatencyFirst
    from .elastic import fixed as fixed
    from .engine import Engine as Engine
    from .executor import Executor as Executor
    from .handle import Handle as Handle
    from .latency import Latency as Latency
    from .latency import LatencyTable as LatencyTable
    from .latency import TableError as TableError
    from .pictures import plot_attainment as plot_attainment
    from .pictures import plot_serving as plot_serving
    from .policy import Decision as Decision
    from .policy import Policy as Policy
    from .policy import PolicyError as PolicyError
    from .policy import Request as Request
    from .ranking import Ranking as Ranking
    from .recorded import Recorded as Recorded
    from .recorded import read_csv as read_csv
    from .recorded import replay as replay
    from .rows import InvalidRequest as InvalidRequest
    from .rows import Rows as Rows
    from .scaling import Scaling as Scaling
    from .scaling import Told as Told
    from .shared_core import Http as Http
    from .signature import Lengths as Lengths
    from .signature import Tensor as Tensor
    from .simulation import Simulation as Simulation
    from .simulator import simulate as simulate
    from .slow_down import SlowDown as SlowDown
    from .stages import Above as Above
    from .traces import TraceError as TraceError
    from .traces import diurnal as diurnal
    from .traces import gamma as gamma
    from .traces import mmpp as mmpp
    from .traces import poisson as poisson
    from .traces import step as step

_WHERE = {
    "answers": (
        "Answer",
        "Draining",
        "Failed",
        "Full",
        "Late",
        "Refused",
        "Watcher",
    ),
    "baselines": ("SlackFit", "Window"),
    "cascade": ("Cascade",),
    "elastic": ("Elastic", "LatencyFirst", "fixed"),
    "engine": ("Engine",),
    "executor": ("Executor",),
    "handle": ("Handle",),
    "latency": ("Latency", "LatencyTable", "TableError"),
    "pictures": ("plot_attainment", "plot_serving"),
    "policy": ("Decision", "Policy", "PolicyError", "Request"),
    "ranking": ("Ranking",),
    "recorded": ("Recorded", "read_csv", "replay"),
    "rows": ("InvalidRequest", "Rows"),
    "scaling": ("Scaling", "Told"),
    "signature": ("Lengths", "Tensor"),
    "shared_core": ("Http",),
    "simulation": ("Simulation",),
    "simulator": ("simulate",),
    "slow_down": ("SlowDown",),
    "stages": ("Above",),
    "traces": ("TraceError", "diurnal", "gamma", "mmpp", "poisson", "step"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
