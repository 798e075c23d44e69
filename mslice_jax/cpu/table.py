"""Which primitives have a form that is fast on CPU, and when."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.forms import Form, Forms
from ..core.rules import Narrow
from ..core.rules.contract import groups_of_conv
from . import convolution, dense, loops, pooling, sums, work

_SHARE = 0.02  # see `experiments/LOG.md`, 2026-11-28, "When does ms.jit gain?"


def suits(program: Any) -> bool:
    """Whether so much of a program is convolutions that it gains from our ways."""
    return work.share(program) >= _SHARE


def gains(program: Any) -> bool:
    """Whether a program is compiled in our way: it suits, or has a barrier of ours.

    XLA takes barriers away before it fuses, unless our options say otherwise.
    """
    return suits(program) or work.has(program, "optimization_barrier")


def _convolves(n: Narrow, lhs: Any, rhs: Any) -> bool:
    return convolution.applies(lhs, rhs, {**n.params, **groups_of_conv(n)})


def _convolve(library: str, n: Narrow, lhs: Any, rhs: Any) -> Any:
    groups = groups_of_conv(n)
    run = functools.partial(n.bind, **groups)
    form = convolution.with_cpu_gradient(run, {**n.params, **groups}, library)
    with jax.named_scope(work.SCOPE):  # its products count as a convolution
        return form(lhs, rhs)


def _pools(n: Narrow, x: Any) -> bool:
    return pooling.applies(x, n.params)


def _pool(n: Narrow, x: Any) -> Any:
    return pooling.maximum(x, n.params)


def _pools_to_sums(n: Narrow, x: Any) -> bool:
    # Along the last axis alone XLA's are as good.
    *others, _ = n.params["window_dimensions"]
    suits = x.dtype == jnp.float32 and any(k > 1 for k in others)
    return suits and pooling.applies(x, n.params)


def _pool_to_sums(n: Narrow, x: Any) -> Any:
    return pooling.total(x, n.params)


def _multiplies(n: Narrow, lhs: Any, rhs: Any) -> bool:
    del lhs, rhs
    return dense.applies(n.eqn)


def _multiply(n: Narrow, lhs: Any, rhs: Any) -> Any:
    return dense.with_cpu_gradient(n.bind, n.params)(lhs, rhs)


def _sums(n: Narrow, x: Any) -> bool:
    return sums.is_inner_sum(x, n.params)


def _sum(n: Narrow, x: Any) -> Any:
    return sums.sum_in_two(x, n.params)


def _forms(library: str) -> Forms:
    convolve = Form(_convolves, functools.partial(_convolve, library))
    table = {
        "conv_general_dilated": convolve,
        "dot_general": Form(_multiplies, _multiply, always=True),
        "reduce_sum": Form(_sums, _sum),
        "reduce_window_max": Form(_pools, _pool),
        "reduce_window_sum": Form(_pools_to_sums, _pool_to_sums),
        "scan": Form(loops.applies, loops.scan),
    }
    return Forms(library, table, suits)


EIGEN, ONEDNN = _forms("eigen"), _forms("onednn")
"""By the library that computes the convolutions of a program."""
