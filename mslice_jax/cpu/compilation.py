"""`jax.jit` as this package compiles networks: on CPU, without what slows them down.

XLA's CPU backend gives convolutions to YNNPACK, whose filter gradients take up to four
times as long as those of XLA's own code, and whose forward pass of a convolutional
network takes 1.3 to 1.5 times as long (`experiments/LOG.md`). An option of the compiler
leaves it to products of matrices and to sums, and the evaluator is given the forms and
derivatives of convolutions, poolings and loops that are fast then (`table`). The
forward pass of a network with few convolutions and loops gains nothing from that: it is
compiled as by `jax.jit`. A backward pass gains from the cotangents of products.

The numbers are the same up to rounding. So this is not done behind a user's own
`jax.jit`, which gets the primitives that the user wrote: there rate 1 is bit for bit
the network that was upgraded.
"""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state

from ..core.forms import active
from .choice import Jitted
from .table import EIGEN, ONEDNN, gains

_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
# Faster still, from jaxlib 0.11 on, but XLA cannot write such programs to a cache.
_ONEDNN = "xla_cpu_experimental_onednn_custom_call"
_OPTIONS = {
    # The only operations that it gets. XLA's own are slower: products of a few rows (an
    # LSTM's step takes three times as long), and sums over rows (biases, norms).
    _YNNPACK: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    # Kernels run in parallel inside; at the same time they get in each other's way.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # In jaxlib 0.10 this pass takes optimization barriers away before fusion.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
# Seen from a thread of its own, for this module may be imported while JAX traces.
with concurrent.futures.ThreadPoolExecutor(1) as _thread:
    _OUTERMOST = _thread.submit(get_opaque_trace_state).result()


def jit(fun: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit`, on CPU with the options and derivatives that suit convolutions there.

    The first call of a signature chooses: a program with a convolution, or with a loop
    that reads a weight at every turn, in a branch or a derivative too, gets the
    options, and its networks the forms. So does the gradient of a network that has
    products. The forward pass of one without convolutions and such loops is the program
    of `jax.jit`, bit for bit. The function is traced once.

    Results differ from those of `jax.jit` by rounding. On other platforms, with a
    jaxlib that does not know the options, and under another transformation (jit, grad,
    vmap) it is `jax.jit`: put it outermost. It asks JAX for its devices, so
    `jax.distributed.initialize` comes before it.

    Args:
      fun: the function.
      **options: what `jax.jit` takes; `compiler_options` are added to those here.

    Example:
      >>> import mslice_jax as ms, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> model = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, nn.Conv(2, (1, 1))])
      >>> x = jnp.ones((1, 6, 6, 3))
      >>> net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
      >>> half = ms.jit(lambda net, x: ms.slice_apply(net, x, 0.5))
      >>> half(net, x).shape
      (1, 6, 6, 2)
    """
    known = _known_options()
    if _YNNPACK not in known:
        return jax.jit(fun, **options)
    users = options.get("compiler_options") or {}
    forms = ONEDNN if users.get(_ONEDNN) else EIGEN
    return Jitted(
        fun, gains, lambda: active(forms), known, options, outermost=_OUTERMOST
    )


@functools.cache
def _known_options() -> dict[str, str]:
    """Those of the options that there are: none where programs are not for CPU."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _OPTIONS.items() if _is_known(name, value)}


def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:  # options come and go with releases of XLA
        return False
    return True
