"""What runs without the model: one exported StableHLO program for each rate.

A program takes the weights of its rate, which are cut from those of the network outside
of it and kept, so that serving a rate costs what a network of its width costs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.export
import numpy as np
from jax.core import Tracer

from ..core import axes as axes_lib
from ..core.axes import Axis
from ..core.call import Call, plain_type
from ..core.errors import RateError
from ..core.rates import SubNetwork, check_rate
from ..sliceable import Network, Sliceable, extract
from .archive import Reader, StorageError
from .arrays import describe, type_from
from .plain import (
    NotPlain,
    call_to_json,
    paths_of,
    static_from_json,
    tree_from_json,
    tree_to_json,
)

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""The platforms that a program is exported for, where it can be for all of them."""

_BATCH = "batch"
_WITH_MODEL = "With the model it does all: mslice_jax.load(path, model=...)."


class SaveWarning(UserWarning):
    """A network was saved without the programs that run where the model is not."""


class NotExported(Exception):
    """A call that no exported program can stand for; says why."""


# -- exporting


def export(net: Sliceable) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]:
    """The programs of a network, one for each rate that it can run at.

    Returns:
      What they have in common (signature, platforms), and for each its own data and
      its serialised form.

    Raises:
      NotExported: if there is none for the call that `upgrade` saw.
    """
    definition = net.definition
    args, kwargs = definition.call.join(definition.arrays)
    try:
        call = call_to_json(args, kwargs)
    except NotPlain as error:
        raise NotExported(str(error)) from None
    types = jax.eval_shape(lambda net: net, net)
    rates: list[float | None] = list(net.rates)
    if net.part.rate not in rates:
        rates.append(None)  # all of it, at widths of no single declared rate
    bodies = [_Body(types, rate) for rate in rates]
    arrays, why_fixed = _with_free_batch(bodies[-1], definition.arrays)
    try:
        platforms: Sequence[str] = PLATFORMS
        found = _export_each(bodies, arrays, platforms)
    except NotExported:
        # Some primitives can be lowered for the platform at hand alone.
        platforms = (jax.export.default_export_platform(),)
        found = _export_each(bodies, arrays, platforms)
    common = {
        "call": call,
        "arrays": [describe(x) for x in arrays],
        "batch": why_fixed,
        "platforms": list(platforms),
    }
    return common, found


class _Body:
    """The function that is exported for a rate: flat lists of arrays in, and out."""

    def __init__(self, types: Sliceable, rate: float | None):
        self.rate = rate
        self.call = types.definition.call
        _, kwargs = self.call.join(types.definition.arrays)
        whole = types.definition.function.updates(kwargs)
        # Updated collections come at the shapes of all of the network.
        self.net = types if rate is None or whole else extract(types, rate)
        place = {path: i for i, path in enumerate(paths_of(types.variables))}
        self.taken = [place[path] for path in paths_of(self.net.variables)]
        self.leaves = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=bool(x.weak_type))
            for x in jax.tree.leaves(self.net.variables)
        ]
        self.out: Any = None

    def __call__(self, leaves: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        args, kwargs = self.call.join(arrays)
        variables = jax.tree.unflatten(jax.tree.structure(self.net.variables), leaves)
        net = self.net.replace(variables)
        rate = net.part if self.rate is None else self.rate
        self.out = net(rate, *args, **kwargs)
        return jax.tree.leaves(self.out)

    def output(self) -> Any:
        """The tree of the output, as JSON."""
        try:
            return tree_to_json(self.out, lambda _: None)
        except NotPlain as error:
            raise NotExported(f"the output is {error}") from None


def _export_each(
    bodies: Sequence[_Body], arrays: Sequence[Any], platforms: Sequence[str]
) -> list[tuple[dict[str, Any], bytes]]:
    found = []
    for body in bodies:
        try:
            exported = jax.export.export(jax.jit(body.__call__), platforms=platforms)(
                body.leaves, list(arrays)
            )
            content = bytes(exported.serialize())
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotExported(f"{type(error).__name__}: {text[:200]}") from error
        about = {
            "rate": body.rate,
            "widths": dict(body.net.part.widths),
            "leaves": body.taken,
            "output": body.output(),
        }
        found.append((about, content))
    return found


def _with_free_batch(
    body: _Body, arrays: Sequence[Any]
) -> tuple[list[Any], str | None]:
    """The types of the arrays with a free batch size, or why it cannot be free.

    The batch is the first axis of the first array that has axes, and that of all others
    which has the same size.
    """
    plain = [plain_type(x) for x in arrays]
    sizes = [x.shape[0] for x in plain if x.shape and _is_plain(x)]
    if not sizes:
        return plain, "no input has a batch"
    if any(not isinstance(n, int) for x in plain for n in x.shape):
        return plain, None  # as the user chose at `upgrade`
    try:
        (batch,) = jax.export.symbolic_shape(_BATCH)
        free = [
            x.update(shape=(batch, *x.shape[1:]))
            if x.shape and _is_plain(x) and x.shape[0] == sizes[0]
            else x
            for x in plain
        ]
        # A function that asks for the size of the batch (`if len(x) == 8`) gets the
        # answer no of a free one, and may compute something else then.
        if not _alike(_trace(body, plain), _trace(body, free)):
            return plain, "the function is another one where the batch has a free size"
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return plain, f"a batch of free size fails with {text[:160]}"
    return free, None


def _is_plain(x: Any) -> bool:
    return not jax.numpy.issubdtype(x.dtype, jax.dtypes.extended)


def _trace(body: _Body, arrays: Sequence[Any]) -> Any:
    return jax.make_jaxpr(body.__call__)(body.leaves, list(arrays))


def _alike(here: Any, there: Any) -> bool:
    """Whether two parts of programs are the same but for sizes that are free there.

    Programs are compared equation by equation, with their numbers and parameters; what
    cannot be compared counts as different, for then the batch just keeps its size.
    """
    if jax.export.is_symbolic_dim(there):
        return isinstance(here, int)  # that shapes fit JAX itself has checked
    if hasattr(there, "eqns") or hasattr(there, "jaxpr"):
        return _alike(_parts(here), _parts(there))
    if isinstance(there, (tuple, list)):
        same = isinstance(here, (tuple, list)) and len(here) == len(there)
        return same and all(map(_alike, here, there))
    if isinstance(there, Mapping):
        same = isinstance(here, Mapping) and here.keys() == there.keys()
        return same and all(_alike(here[key], there[key]) for key in there)
    if callable(there) or hasattr(there, "call_wrapped"):
        return type(here) is type(there)  # rules of derivatives, which are not called
    if hasattr(there, "shape") and hasattr(there, "dtype"):
        return bool(np.array_equal(np.asarray(here), np.asarray(there)))
    try:
        return bool(here == there)
    except Exception:
        return False


def _parts(program: Any) -> Any:
    """The equations of a jaxpr, closed or not, as tuples; constants first."""
    jaxpr = getattr(program, "jaxpr", program)
    names: dict[Any, int] = {}

    def operand(var: Any) -> Any:
        if hasattr(var, "val"):
            return ("number", str(var.aval.dtype), var.val)
        return names.setdefault(var, len(names))

    for var in [*jaxpr.constvars, *jaxpr.invars]:
        operand(var)
    equations = [
        (
            eqn.primitive.name,
            [operand(var) for var in eqn.invars],
            [operand(var) for var in eqn.outvars],
            eqn.params,
        )
        for eqn in jaxpr.eqns
    ]
    results = [operand(var) for var in jaxpr.outvars]
    return list(getattr(program, "consts", ())), equations, results


# -- running


@dataclass(frozen=True, eq=False)
class _Program:
    """One exported program.

    Attributes:
      widths: of the weights that it takes.
      leaves: which leaves of the network these are.
      output: the tree of its output, as JSON.
      run: the program, a function of lists of weights and of inputs.
    """

    widths: Mapping[str, int]
    leaves: Sequence[int]
    output: Any
    run: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Saved:
    """The static part of `Programs`.

    Attributes:
      path: the file.
      part: which part of a network was saved.
      rates: the rates that it runs at.
      axes: of every leaf.
      programs: by rate; None for all that was saved.
      signature: the call, as JSON.
      arrays: types of its arrays, of which the batch may be of free size.
      batch: why the batch is not free, or None.
    """

    path: str
    part: SubNetwork
    rates: tuple[float, ...]
    axes: Sequence[Sequence[Axis]]
    programs: Mapping[float | None, _Program]
    signature: Any
    arrays: Sequence[Any]
    batch: str | None
    narrow: dict[Any, Any] = field(default_factory=dict, repr=False)


@jax.tree_util.register_pytree_node_class
class Programs(Network):
    """A network that was loaded without its model: it runs, and nothing else.

    ``slice_apply(net, x, r)`` runs it at the rates and with the signature that were
    saved; the batch may be of any size where the program could be exported so. A
    pytree, of the weights.

    Attributes:
      variables: the arrays, as a list.
      saved: the static part.
    """

    __slots__ = ("saved", "variables")

    def __init__(self, variables: Sequence[Any], saved: Saved):
        self.variables = list(variables)
        self.saved = saved

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates that it runs at, ascending."""
        return self.saved.rates

    @property
    def rate(self) -> float | SubNetwork:
        """The rate of what was saved."""
        part = self.saved.part
        return part if part.rate is None else part.rate

    def __call__(self, r: Any, /, *inputs: Any, **call: Any) -> Any:
        """Runs at a saved rate: ``net(0.5, x)``.

        Raises:
          RateError: for a rate that was not saved.
          ValueError: for a call of another signature than the one that was saved.
          TypeError: where it is differentiated.
        """
        program = self._program(r)
        split, arrays = Call.split(inputs, call)
        self._check(split, arrays)
        weights = self._weights(program)
        each = iter(program.run(weights, arrays))
        return tree_from_json(program.output, lambda _: next(each))

    def _program(self, r: Any) -> _Program:
        saved = self.saved
        if isinstance(r, SubNetwork) and r == saved.part:
            key = r.rate
        elif isinstance(r, Mapping):
            raise RateError(
                "a network loaded without its model runs at the saved rates "
                f"{saved.rates}, not at rates of width groups; got {r!r}. {_WITH_MODEL}"
            )
        else:
            key = check_rate(r)
        if key not in saved.programs:
            raise RateError(
                f"rate {r} was not saved; {saved.path} has programs for "
                f"{saved.rates or saved.part}. {_WITH_MODEL}"
            )
        return saved.programs[key]

    def _check(self, split: Call, arrays: Sequence[Any]) -> None:
        """Raises ValueError for another call than the one that was saved."""
        saved = self.saved
        args, kwargs = split.join(arrays)
        try:
            signature = call_to_json(args, kwargs)
        except NotPlain as error:
            signature = str(error)
        expected = _signature(saved.signature, saved.arrays)
        if signature != saved.signature:
            raise ValueError(
                f"the programs were exported for the call {expected}; got "
                f"{_signature(signature, arrays)}. {_WITH_MODEL}"
            )
        sizes: dict[str, int] = {}
        for wanted, x in zip(saved.arrays, arrays, strict=True):
            got = plain_type(x)
            fits = got.dtype == wanted.dtype and len(got.shape) == len(wanted.shape)
            for size, n in zip(wanted.shape, got.shape, strict=False):
                fits = fits and (
                    size == n
                    if isinstance(size, int)
                    else sizes.setdefault(str(size), n) == n and n != 0
                )
            if not fits:
                fixed = f" (its batch is fixed: {saved.batch})" if saved.batch else ""
                raise ValueError(
                    f"the programs were exported for the call {expected}{fixed}; got "
                    f"{_signature(signature, arrays)}. {_WITH_MODEL}"
                )

    def _weights(self, program: _Program) -> list[Any]:
        """The weights that a program takes; cut once where they are arrays."""
        held = dict(self.saved.part.widths)
        leaves = [self.variables[i] for i in program.leaves]
        axes = [self.saved.axes[i] for i in program.leaves]

        def cut(leaves: Sequence[Any]) -> list[Any]:
            return [
                axes_lib.slice_array(x, of, program.widths, held)
                for x, of in zip(leaves, axes, strict=True)
            ]

        if program.widths == held:
            return leaves
        concrete = all(isinstance(x, jax.Array) for x in leaves)
        if not concrete or any(isinstance(x, Tracer) for x in leaves):
            return cut(leaves)
        kept = self.saved.narrow.get(id(program))
        if kept is None or any(
            a is not b for a, b in zip(kept[0], leaves, strict=True)
        ):
            with jax.ensure_compile_time_eval():
                kept = self.saved.narrow[id(program)] = leaves, jax.jit(cut)(leaves)
        return kept[1]

    def tree_flatten(self) -> Any:
        """The arrays, and the static part, as JAX asks of a pytree."""
        return self.variables, self.saved

    @classmethod
    def tree_unflatten(cls, saved: Any, variables: Any) -> "Programs":
        """The inverse of flattening."""
        return cls(variables, saved)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what copy and others ask for
            raise AttributeError(name)
        raise AttributeError(
            f"a network loaded without its model runs slice_apply at {self.rates} and "
            f"nothing else; it has no {name!r}. {_WITH_MODEL}"
        )

    def __repr__(self) -> str:
        call = _signature(self.saved.signature, self.saved.arrays)
        return f"Programs(rates={self.rates}, call={call})"


def read_programs(
    reader: Reader, manifest: Mapping[str, Any], axes: Sequence[Any], part: SubNetwork
) -> Saved:
    """The programs of a file.

    Raises:
      StorageError: if it has none, or they cannot be read.
    """
    common = manifest["programs"]
    if isinstance(common, str):
        raise StorageError(
            f"{reader.path} has no programs ({common}), so it needs the model: "
            "mslice_jax.load(path, model=...)."
        )
    programs: dict[float | None, _Program] = {}
    for each in common["each"]:
        content = reader.read(each["file"])
        try:
            exported = jax.export.deserialize(bytearray(content))
            exported.mlir_module()  # an older JAX notices later StableHLO here
        except ImportError as error:
            raise StorageError(f"cannot read {reader.path}: {error}") from error
        except Exception as error:
            raise StorageError(
                f"the programs of {reader.path} were exported by jax "
                f"{manifest['jax']}, and jax {jax.__version__} cannot read them "
                f"({str(error)[:80]!r}). Load it with the model, and save it again: "
                "mslice_jax.load(path, model=...)."
            ) from error
        programs[each["rate"]] = _Program(
            each["widths"], each["leaves"], each["output"], _runner(exported)
        )
    scope = jax.export.SymbolicScope()
    return Saved(
        path=str(reader.path),
        part=part,
        rates=tuple(sorted(rate for rate in programs if rate is not None)),
        axes=axes,
        programs=programs,
        signature=common["call"],
        arrays=[type_from(x, scope) for x in common["arrays"]],
        batch=common["batch"],
    )


def _runner(exported: Any) -> Callable[..., Any]:
    """A program as a function; to differentiate it is an error that says what to do."""

    @jax.custom_vjp
    def run(weights: Any, arrays: Any) -> Any:
        return exported.call(weights, arrays)

    def refuse(*_: Any) -> NoReturn:
        raise TypeError(
            "a network loaded without its model has no derivative, so it cannot be "
            f"trained. {_WITH_MODEL}"
        )

    run.defvjp(refuse, refuse)
    return jax.jit(run)


def _signature(call: Any, arrays: Sequence[Any]) -> str:
    """A call in words: '(float32[batch,32], train=False)'."""
    if isinstance(call, str):
        return f"one with what JSON cannot say ({call})"
    each = iter(arrays)

    def leaf(value: Any) -> Any:
        if value != ["array"]:
            return _Text(repr(static_from_json(value)))
        x = plain_type(next(each))
        return _Text(f"{x.dtype}[{','.join(map(str, x.shape))}]")

    parts = [str(tree_from_json(part, leaf)) for part in call["inputs"]]
    parts += [f"{n}={tree_from_json(part, leaf)}" for n, part in call["keywords"]]
    return f"({', '.join(parts)})"


class _Text(str):
    """A text that a tree shows without quotes."""

    def __repr__(self) -> str:
        return str(self)
