"""Networks as programs: StableHLO by `jax.export`, one program for each rate.

A program is a function of two flat lists, the weights that it reads and the arrays of
the call. The weights are cut to its widths outside of it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from ..core import axes as axes_lib
from ..core.axes import Axis
from ..core.call import plain_type
from ..core.plan import WidthPlan
from ..sliceable import Sliceable, extract
from .answers import same_answers
from .arrays import describe
from .batch import with_free_batch
from .names import input_names, output_names
from .plain import NotPlain, call_to_json, paths_of, tree_to_json


class NotExported(Exception):
    """A call that no exported program can stand for; says why."""


class Exporter:
    """The programs of a network before they are for some platform.

    Attributes:
      bodies: the functions that are exported, one for each rate.
      arrays: types of the arrays of the call, with a batch of any size if it can be so.
      why_fixed: why it cannot, or None.
    """

    def __init__(
        self,
        net: Sliceable,
        rates: Sequence[float | None],
        *,
        free_batch: bool = True,
    ):
        """Traces the functions.

        Args:
          net: the network.
          rates: ascending; None for all of the network, at widths of no declared rate.
          free_batch: whether the batch is to have any size, if it can.

        Raises:
          NotExported: if nothing can stand for the call that `upgrade` saw.
        """
        self._net = net
        definition = net.definition
        args, kwargs = definition.call.join(definition.arrays)
        try:
            self._call = call_to_json(args, kwargs)
        except NotPlain as error:
            raise NotExported(str(error)) from None
        types = jax.eval_shape(lambda net: net, net)
        self.bodies = [Body(types, rate) for rate in rates]
        if free_batch:
            trace = self.bodies[-1].trace
            self.arrays, self.why_fixed = with_free_batch(
                trace, definition.arrays, self._same
            )
        else:
            self.arrays = [plain_type(x) for x in definition.arrays]
            self.why_fixed = "it was exported so"
        for body in self.bodies:
            body.take_what_is_read(self.arrays)

    @property
    def inputs(self) -> list[str]:
        """Names of the arrays of the call."""
        return input_names(self._net.definition)

    def common(self, platforms: Sequence[str]) -> dict[str, Any]:
        """What the programs have in common, as JSON."""
        return {
            "call": self._call,
            "arrays": [
                {"name": name, **describe(x)}
                for name, x in zip(self.inputs, self.arrays, strict=True)
            ],
            "batch": self.why_fixed,
            "platforms": list(platforms),
        }

    def programs(self, platforms: Sequence[str]) -> list[tuple[dict[str, Any], bytes]]:
        """For each rate what its program takes and gives, as JSON, and the program.

        Raises:
          NotExported: if one cannot be exported for all of the platforms.
        """
        found = []
        for body in self.bodies:
            args = body.leaves, list(self.arrays)
            exported, content = _serialised(body.__call__, args, platforms)
            about = {
                "rate": body.rate,
                "widths": dict(body.net.part.widths),
                "leaves": body.taken,
                "output": body.output(),
                "outputs": [
                    {"name": name, **describe(x)}
                    for name, x in zip(body.outputs, exported.out_avals, strict=True)
                ],
            }
            found.append((about, content))
        return found

    def _same(self, plain: Sequence[Any], free: Sequence[Any]) -> bool:
        """Whether the widest function gives the same with a batch of free size."""
        body, leaves = self.bodies[-1], jax.tree.leaves(self._net.variables)
        weights = [leaves[i] for i in body.taken]
        if (cut := self._cut_of(body)) is not None:
            weights = cut(weights)
        return same_answers(body.__call__, weights, plain, free)

    def _cut_of(self, body: "Body") -> Callable[[Sequence[Any]], list[Any]] | None:
        """The function that cuts the weights of a rate, None where it takes all."""
        widths, held = dict(body.net.part.widths), dict(self._net.part.widths)
        if widths == held:
            return None
        paths, plan = paths_of(self._net.variables), self._net.definition.plan
        axes = [axes_of(plan, paths[i]) for i in body.taken]

        def cut(leaves: Sequence[Any]) -> list[Any]:
            return [
                axes_lib.slice_array(x, of, widths, held)
                for x, of in zip(leaves, axes, strict=True)
            ]

        return cut

    def cuts(self, platforms: Sequence[str]) -> list[bytes | None]:
        """For each rate the program that cuts its weights, None where it takes all."""
        types = jax.tree.leaves(jax.eval_shape(lambda net: net.variables, self._net))

        def program(body: Body) -> bytes | None:
            if (cut := self._cut_of(body)) is None:
                return None
            given = [types[i] for i in body.taken]
            return _serialised(cut, (given,), platforms)[1]

        return [program(body) for body in self.bodies]


class Body:
    """The function that is exported for a rate: flat lists of arrays in, and out.

    Attributes:
      rate: that of the program; None for all of the network.
      net: types of the network that it runs.
      taken: which leaves of the whole network it takes.
      out: the tree of the output, once it was traced.
    """

    def __init__(self, types: Sliceable, rate: float | None):
        self.rate = rate
        self.call = types.definition.call
        _, kwargs = self.call.join(types.definition.arrays)
        whole = types.definition.function.updates(kwargs)
        # Updated collections come at the shapes of all of the network.
        self.net = types if rate is None or whole else extract(types, rate)
        place = {path: i for i, path in enumerate(paths_of(types.variables))}
        self.taken = [place[path] for path in paths_of(self.net.variables)]
        self._types = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=bool(x.weak_type))
            for x in jax.tree.leaves(self.net.variables)
        ]
        self._read = list(range(len(self._types)))
        self.out: Any = None

    @property
    def leaves(self) -> list[Any]:
        """Types of the weights that it takes."""
        return [self._types[i] for i in self._read]

    def __call__(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        args, kwargs = self.call.join(arrays)
        given = dict(zip(self._read, leaves, strict=True))
        every = [
            given[i] if i in given else _stand_in(x) for i, x in enumerate(self._types)
        ]
        variables = jax.tree.unflatten(jax.tree.structure(self.net.variables), every)
        net = self.net.replace(variables)
        rate = net.part if self.rate is None else self.rate
        self.out = net(rate, *args, **kwargs)
        return jax.tree.leaves(self.out)

    @property
    def outputs(self) -> list[str]:
        """Names of the arrays of its output, once it was traced."""
        return output_names(self.out)

    def trace(self, arrays: Sequence[Any]) -> Any:
        """Its jaxpr."""
        return jax.make_jaxpr(self.__call__)(self.leaves, list(arrays))

    def take_what_is_read(self, arrays: Sequence[Any]) -> None:
        """Leaves out the weights that it never reads: norms of other rates, keys."""
        try:
            jaxpr = self.trace(arrays).jaxpr
        except Exception as error:
            raise NotExported(line(error)) from error
        live = _live(jaxpr)
        given = jaxpr.invars[: len(self._types)]
        self._read = [i for i, var in enumerate(given) if var in live]
        self.taken = [self.taken[i] for i in self._read]

    def output(self) -> Any:
        """The tree of the output, as JSON."""
        try:
            return tree_to_json(self.out, lambda _: None)
        except NotPlain as error:
            raise NotExported(f"the output is {error}") from None


def axes_of(plan: WidthPlan, path: Sequence[str]) -> Sequence[Axis]:
    """The axes of a leaf that the plan has."""
    leaf = plan.leaf(tuple(path))
    if leaf is None:
        raise ValueError(f"no plan of {'/'.join(path)}")
    return leaf.axes


def _stand_in(x: Any) -> Any:
    """Zeros in place of a weight that nothing reads."""
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.zeros(x.shape, x.dtype)
    data = jax.eval_shape(jax.random.key_data, x)
    key = describe(x)["key"]
    return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=key)


def _live(jaxpr: Any) -> set[Any]:
    """The variables of a jaxpr that its results and its effects come from."""
    live = {var for var in jaxpr.outvars if not hasattr(var, "val")}
    for eqn in reversed(jaxpr.eqns):
        if not eqn.effects and not any(var in live for var in eqn.outvars):
            continue
        operands = eqn.invars
        if eqn.primitive.name == "jit":
            inner = eqn.params["jaxpr"].jaxpr
            read = _live(inner)
            pairs = zip(operands, inner.invars, strict=True)
            operands = [var for var, there in pairs if there in read]
        live.update(var for var in operands if not hasattr(var, "val"))
    return live


def _serialised(
    function: Callable[..., Any], args: Sequence[Any], platforms: Sequence[str]
) -> tuple[jax.export.Exported, bytes]:
    try:
        with _without_lines():
            exported = jax.export.export(jax.jit(function), platforms=platforms)(*args)
        return exported, bytes(exported.serialize())
    except Exception as error:
        raise NotExported(line(error)) from error


@contextlib.contextmanager
def _without_lines() -> Iterator[None]:
    """Leaves files and lines out of programs: they name folders of this machine."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def line(error: Exception) -> str:
    """An error as one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text[:200]}"
