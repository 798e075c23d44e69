"""The proofs on one random network.

In double precision, so that rounding is far below any fault. The source takes its sizes
from its arguments; so run on narrow weights it is the network written narrow by hand.
"""

import collections
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax.core.axes import indices
from mslice_jax.core.errors import PlanError
from mslice_jax.core.rules.live import live
from tests.compiling import QUICK
from tests.fuzz.builder import Network

TOLERANCE = 1e-8
RATES = (0.25, 0.5, 0.75)
CHECKS = (True, False)  # with the ninth proof, and by analysis alone


class ProofError(AssertionError):
    """A network that does not pass; the message names the proof."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Which of the proofs a network was put through."""

    narrows: bool = True
    masked: bool = False
    permuted: bool = False
    by_hand: bool = False


def check(network: Network, rate: float, *, gradient: bool = True) -> Facts:
    """Puts a network through the proofs at a rate.

    Args:
      network: the network.
      rate: the rate.
      gradient: whether to prove what is said of gradients; this costs half of the time.

    Raises:
      ProofError: naming the proof that does not hold.
      Exception: whatever upgrading or running raises.
    """
    facts = check_program(network, rate)
    if not facts.narrows:
        return facts
    with jax.enable_x64(True):
        return _check(network, rate, gradient, facts.by_hand)


def check_program(network: Network, rate: float) -> Facts:
    """The proofs that need no run: what the narrow program is made of.

    It adds no gather, and where every group keeps exactly its share it has the
    equations that tracing the source on narrow weights gives (if it can be traced: a
    group norm of 4 channels has no group left where two parts of 2 are side by side).
    Twenty times as quick as `check`.
    """
    with jax.enable_x64(True):
        function, x = network.function(), jnp.asarray(network.input())
        told = network.function(by_hand=True)
        types = {
            name: jax.ShapeDtypeStruct(shape, jnp.float64)
            for name, shape in network.weights.items()
        }
        rates = (rate / 2, rate, 1.0)
        full = _equations(function, types, x)
        compared = set()
        for check in CHECKS:
            try:
                # Sizes held fixed would contradict what runs on narrow arrays.
                net = _upgraded(told if check else function, types, x, rates, check)
            except PlanError as error:
                if "narrow" in str(error).split("\n")[0]:
                    return Facts(narrows=False)
                raise
            for r in rates:
                narrow = _equations(
                    lambda net, x, r=r: ms.slice_apply(net, x, r), net, x
                )
                if _gathers(narrow) > _gathers(full):
                    raise ProofError(f"a gather is added: {_gathers(narrow - full)}")
                small = ms.extract(net, r)
                inexact = any(at == r for _, at, _ in net.plan.inexact())
                if network.not_by_hand or inexact:
                    continue
                if 1 in net.plan.widths(r).values():
                    continue  # JAX itself spells what has one entry otherwise
                narrow = _equations(
                    lambda net, x, r=r: ms.slice_apply(net, x, r), small, x
                )
                try:
                    by_hand = _equations(told, small.variables, x)
                except (TypeError, ValueError, ZeroDivisionError):
                    continue
                compared.add(r)
                if by_hand != narrow:
                    raise ProofError(
                        "the program is that of the source on narrow weights: "
                        f"with check={check} it has {dict(narrow - by_hand)}, "
                        f"not {dict(by_hand - narrow)}"
                    )
    return Facts(by_hand=rate in compared)


def _upgraded(
    function: Any, weights: Any, x: Any, rates: Sequence[float], check: bool
) -> ms.Sliceable:
    """Numbers of which it cannot tell whether they follow are an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ms.upgrade(function, weights, x, rates=rates, check=check)


def _equations(function: Any, *args: Any) -> collections.Counter[Any]:
    """How often there is which primitive on which shapes and numbers; also in calls.

    A scalar that is known is a number, however it was computed, and so is an array that
    is one known number throughout: 1 / n spread out is 1 spread out, then divided.
    """
    found: collections.Counter[Any] = collections.Counter()

    def read(jaxpr: Any, numbers: dict[Any, Any]) -> list[Any]:
        def number(var: Any) -> Any:
            return var.val if hasattr(var, "val") else numbers.get(var)

        for eqn in live(jaxpr).eqns:  # the narrow program has no others
            name, params = eqn.primitive.name, eqn.params
            ins, outs = [number(var) for var in eqn.invars], [None] * len(eqn.outvars)
            scalar = not any(var.aval.shape for var in eqn.outvars)
            inner = _called(params)
            for child in inner:  # in a loop or a branch numbers need not stay the same
                if name in CALLS:
                    outs = read(child, dict(zip(child.invars, ins, strict=True)))
                else:
                    read(child, {})
            known = bool(ins) and not inner and all(np.ndim(x) == 0 for x in ins)
            known = known and all(x is not None for x in ins)
            if known and (scalar or name in ELEMENTWISE):
                params = eqn.primitive.get_bind_params(params)
                out = eqn.primitive.bind(*ins, **params)
                outs = out if eqn.primitive.multiple_results else [out]
            elif known and name in SPREADING:
                outs = ins[:1]
            elif known and name == "reduce_sum":
                shape, axes = eqn.invars[0].aval.shape, params["axes"]
                outs = [ins[0] * math.prod(shape[axis] for axis in axes)]
            elif not inner and not (scalar and name == "clamp"):  # of `lax.switch`
                of = [
                    var.aval.shape if x is None or np.ndim(x) else _written(x)
                    for var, x in zip(eqn.invars, ins, strict=True)
                ]
                found[name, *of, *(var.aval.shape for var in eqn.outvars)] += 1
            numbers.update(zip(eqn.outvars, outs, strict=False))
        return [number(var) for var in jaxpr.outvars]

    read(jax.make_jaxpr(function)(*args).jaxpr, {})
    return found


ELEMENTWISE = ("add", "sub", "mul", "div", "neg", "integer_pow", "sqrt", "rsqrt")
SPREADING = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose")


def _written(number: Any) -> str:
    number = number if hasattr(number, "dtype") else np.asarray(number)
    if jnp.issubdtype(number.dtype, jax.dtypes.prng_key):
        number = jax.random.key_data(number)
        return str(number)
    return f"{np.asarray(number).item():.6g}"


CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "checkpoint")


def _called(params: Mapping[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    values = jax.tree.leaves(
        list(params.values()), is_leaf=lambda value: hasattr(value, "eqns")
    )
    inner = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in inner if hasattr(jaxpr, "eqns")]


def _gathers(equations: collections.Counter[Any]) -> int:
    names = ("gather", "scatter")
    return sum(n for key, n in equations.items() if key[0].startswith(names))


def _check(network: Network, rate: float, with_gradient: bool, by_hand: bool) -> Facts:
    function = network.function()
    weights = {name: jnp.asarray(w) for name, w in network.variables().items()}
    x = jnp.asarray(network.input())
    net = _upgraded(function, weights, x, (rate / 2, rate, 1.0), CHECKS[-1])
    full = _compiled(function)(weights, x)
    _finite(full)
    at_one = _compiled(lambda net, x: ms.slice_apply(net, x, 1.0))
    _equal("rate 1 is the original, bit for bit", at_one(net, x), full)

    towards = np.random.default_rng(1).normal(size=full.shape)
    mask = net.plan.mask(weights, rate)
    narrow = _nested(net, weights, rate)
    for name, w in weights.items():
        cut = np.asarray(w)[mask[name]]
        _equal(f"{name} is cut to its mask", np.ravel(narrow[name]), cut)
    run = _differentiated(lambda v, x: ms.slice_apply(v, x, rate), with_gradient)
    y, slopes = run(net, x, towards)
    _finite(y)
    poisoned, _ = run(net.replace(_where(mask, weights, np.nan)), x, towards)
    _equal("dropped units have no influence", poisoned, y)
    if with_gradient:
        slopes = slopes.variables
        for name, slope in slopes.items():
            outside = np.asarray(slope)[~mask[name]]
            _equal(f"the gradient of {name} is zero outside", outside, 0 * outside)

    if by_hand:
        told = network.function(by_hand=True)
        run = _differentiated(told, with_gradient)
        y_by_hand, wanted = run(narrow, x, towards)
        _close("narrow is the source on narrow weights", y, y_by_hand)
        if with_gradient:
            largest = max(float(np.abs(slope).max()) for slope in wanted.values())
            for name, slope in wanted.items():
                inside = np.asarray(slopes[name])[mask[name]]
                proof = f"the gradient of {name} is the narrow one inside"
                _close(proof, inside, np.ravel(slope), largest)
    if masked := not network.not_maskable:
        heard = {
            name: _heard(mask[name], network.contracted.get(name, ()))
            for name in weights
        }
        unheard = net.replace(_where(heard, weights, 0.0))
        _close("unheard units are dropped units", at_one(unheard, x), y)
    orders = _orders(net)
    moved = at_one(net.permute(orders), x)
    _close("permuted units give the same output", moved, full)
    if permuted := not network.not_permutable:
        moved = at_one(net.replace(_permuted(net, weights, orders)), x)
        _close("permuted weights give the same output", moved, full)
    return Facts(masked=masked, permuted=permuted, by_hand=by_hand)


def _differentiated(function: Any, with_gradient: bool) -> Callable[..., Any]:
    """(v, x, towards) -> the output, and the gradient of v, if there is to be one."""

    def loss(v: Any, x: Any, towards: Any) -> Any:
        y = function(v, x)
        return jnp.sum(towards * y), y

    if not with_gradient:
        return _compiled(lambda v, x, towards: (function(v, x), None))

    def run(v: Any, x: Any, towards: Any) -> Any:
        (_, y), slopes = jax.value_and_grad(loss, has_aux=True)(v, x, towards)
        return y, slopes

    return _compiled(run)


def _nested(net: Any, weights: Any, rate: float) -> Any:
    """The narrow weights; slicing them further is slicing at once."""

    def slices(v: Any) -> Any:
        narrow = net.plan.slice(v, rate)
        once = net.plan.slice(v, rate / 2)
        return narrow, once, net.plan.slice(narrow, rate / 2, source=rate)

    narrow, once, twice = _compiled(slices)(weights)
    for name in weights:
        _equal(f"slicing {name} nests", twice[name], once[name])
    return narrow


def _orders(net: Any) -> Any:
    """Another order of the units of each group."""
    rng = np.random.default_rng(2)
    return {name: rng.permutation(g.size) for name, g in net.plan.groups.items()}


def _permuted(net: Any, weights: Any, orders: Any) -> Any:
    """The weights with the units of each group in another order."""
    moved = {}
    for name, w in weights.items():
        axes = net.plan.leaf(name).axes
        taken = np.ix_(*(indices(axis, orders) for axis in axes))
        moved[name] = jnp.asarray(np.asarray(w)[taken])
    return moved


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK)


def _where(mask: Mapping[str, Any], weights: Mapping[str, Any], other: float) -> Any:
    where = {name: np.where(mask[name], w, other) for name, w in weights.items()}
    return jax.tree.map(jnp.asarray, where)


def _heard(mask: np.ndarray, contracted: tuple[int, ...]) -> np.ndarray:
    """True where a weight is contracted with a kept unit."""
    if not contracted:
        return np.ones_like(mask)
    free = tuple(axis for axis in range(mask.ndim) if axis not in contracted)
    return np.broadcast_to(mask.any(axis=free, keepdims=True), mask.shape)


def _finite(y: Any) -> None:
    if not np.isfinite(y).all():
        raise ProofError("the output is finite")


def _equal(proof: str, actual: Any, wanted: Any) -> None:
    if not np.array_equal(actual, wanted):
        _fail(proof, actual, wanted)


def _close(proof: str, actual: Any, wanted: Any, scale: float = 0.0) -> None:
    scale = max(scale, float(np.max(np.abs(wanted), initial=0.0)), 1e-3)
    if not np.allclose(actual, wanted, rtol=0, atol=TOLERANCE * scale):
        _fail(proof, actual, wanted)


def _fail(proof: str, actual: Any, wanted: Any) -> None:
    shapes = np.shape(actual), np.shape(wanted)
    if shapes[0] != shapes[1]:
        raise ProofError(f"{proof}: the shapes are {shapes[0]} and {shapes[1]}")
    far = float(np.max(np.abs(np.asarray(actual) - np.asarray(wanted))))
    raise ProofError(f"{proof}: differs by {far:.3g}")
