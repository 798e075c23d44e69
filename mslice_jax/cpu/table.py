"""Which primitives have a form that is fast on CPU, and when."""

import functools
from typing import Any

import jax

from ..core.forms import Form, Forms
from ..core.rules import Narrow
from . import convolution, pooling, rows, work

_SHARE = 0.1  # see `experiments/LOG.md`, 2026-11-28, "When does ms.jit gain?"


def suits(program: Any) -> bool:
    """Whether so much of a program is convolutions that it gains from our ways."""
    return work.share(program) >= _SHARE


def _convolves(n: Narrow, lhs: Any, rhs: Any) -> bool:
    return n.note is None and convolution.applies(lhs, n.params)


def _convolve(library: str, n: Narrow, lhs: Any, rhs: Any) -> Any:
    form = convolution.with_cpu_gradient(n.bind, n.params, library)
    with jax.named_scope(
        work.SCOPE
    ):  # products count for the convolution that they are
        return form(lhs, rhs)


def _pools(n: Narrow, x: Any) -> bool:
    return pooling.applies(x, n.params)


def _pool(n: Narrow, x: Any) -> Any:
    return pooling.with_cpu_gradient(n.bind, x, n.params["window_dimensions"])


def _sums_rows(n: Narrow, x: Any) -> bool:
    return rows.sums_rows(x, n.params["axes"])


def _total(n: Narrow, x: Any) -> Any:
    return rows.total(n.bind, x, n.params["axes"])


def _repeats_rows(n: Narrow, x: Any, y: Any) -> bool:
    return rows.repeats_rows(x, y)


def _bind_spread(n: Narrow, x: Any, y: Any) -> Any:
    return n.bind(*rows.spread(x, y))


def _subtract(n: Narrow, x: Any, y: Any) -> Any:
    return rows.subtract(x, y)


_SPREAD = Form(_repeats_rows, _bind_spread)

_ALIKE = {
    "reduce_window_max": Form(_pools, _pool),
    "reduce_sum": Form(_sums_rows, _total),
    "add": _SPREAD,
    "mul": _SPREAD,
    "div": _SPREAD,
    "sub": Form(_repeats_rows, _subtract),
}


def _forms(library: str) -> Forms:
    convolve = Form(_convolves, functools.partial(_convolve, library))
    return Forms(library, {**_ALIKE, "conv_general_dilated": convolve}, suits)


EIGEN, ONEDNN = _forms("eigen"), _forms("onednn")
"""By the library that computes the convolutions of a program."""
