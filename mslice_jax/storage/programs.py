"""What runs without the model: the programs of a file, one for each rate.

A program takes the weights of its rate, which are cut from those of the file outside of
it and kept, so that serving a rate costs what a network of its width costs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import jax.export
from jax.core import Tracer

from ..core import axes as axes_lib
from ..core.axes import Axis
from ..core.call import Call, plain_type
from ..core.errors import RateError
from ..core.rates import SubNetwork, check_rate
from ..sliceable import Network
from .archive import Reader, StorageError
from .arrays import type_from
from .names import output_names
from .plain import (
    NotPlain,
    call_to_json,
    static_from_json,
    tree_from_json,
)

_WITH_MODEL = "With the model it does all: mslice_jax.load(path, model=...)."
_NO_MODEL = "An export takes no model; mslice_jax.save writes files that load with it."


@dataclass(frozen=True, eq=False)
class _Program:
    """One exported program.

    Attributes:
      leaves: which leaves of the network it takes.
      cut: cuts them to its widths; None where these are those of the network.
      output: the tree of its output, as JSON.
      outputs: names and types of the arrays of its output.
      run: the program, a function of lists of weights and of inputs.
      text: gives its StableHLO.
    """

    leaves: Sequence[int]
    cut: Callable[[Sequence[Any]], list[Any]] | None
    output: Any
    outputs: Mapping[str, jax.ShapeDtypeStruct]
    run: Callable[..., Any]
    text: Callable[[], str]


@dataclass(frozen=True, eq=False)
class Saved:
    """The static part of `Programs`.

    Attributes:
      path: the file.
      part: which part of a network was saved.
      rates: the rates that it runs at.
      programs: by rate; None for all that was saved.
      signature: the call, as JSON.
      names: of its arrays.
      arrays: their types, of which the batch may be of free size.
      batch: why the batch is not free, or None.
      hint: what to do about a call that the programs cannot serve.
    """

    path: str
    part: SubNetwork
    rates: tuple[float, ...]
    programs: Mapping[float | None, _Program]
    signature: Any
    names: Sequence[str]
    arrays: Sequence[Any]
    batch: str | None
    hint: str
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

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names and types of the arrays that it takes, in their order."""
        return dict(zip(self.saved.names, self.saved.arrays, strict=True))

    @property
    def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Names and types of the arrays that it gives, in their order."""
        *_, widest = self.saved.programs.values()
        return dict(widest.outputs)

    def cut(self) -> "Programs":
        """The same; the weights of all rates are cut now, not at the first call."""
        for program in self.saved.programs.values():
            self._weights(program)
        return self

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
                f"{saved.rates}, not at rates of width groups; got {r!r}. {saved.hint}"
            )
        else:
            key = check_rate(r)
        if key not in saved.programs:
            raise RateError(
                f"rate {r} was not saved; {saved.path} has programs for "
                f"{saved.rates or saved.part}. {saved.hint}"
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
                f"{_signature(signature, arrays)}. {saved.hint}"
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
                    f"{_signature(signature, arrays)}. {saved.hint}"
                )

    def _weights(self, program: _Program) -> list[Any]:
        """The weights that a program takes; cut once where they are arrays."""
        leaves = [self.variables[i] for i in program.leaves]
        if program.cut is None:
            return leaves
        concrete = all(isinstance(x, jax.Array) for x in leaves)
        if not concrete or any(isinstance(x, Tracer) for x in leaves):
            return program.cut(leaves)
        kept = self.saved.narrow.get(id(program))
        if kept is None or any(
            a is not b for a, b in zip(kept[0], leaves, strict=True)
        ):
            with jax.ensure_compile_time_eval():
                kept = leaves, jax.jit(program.cut)(leaves)
            self.saved.narrow[id(program)] = kept
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
            f"nothing else; it has no {name!r}. {self.saved.hint}"
        )

    def __repr__(self) -> str:
        call = _signature(self.saved.signature, self.saved.arrays)
        return f"Programs(rates={self.rates}, call={call})"


def read_programs(
    reader: Reader,
    manifest: Mapping[str, Any],
    part: SubNetwork,
    axes: Sequence[Sequence[Axis]] | None,
) -> Saved:
    """The programs of a file.

    Args:
      reader: of the file.
      manifest: its manifest.
      part: which part of the network its weights are.
      axes: of every leaf; None for an export, which has programs that cut.

    Raises:
      StorageError: if it has none, or they cannot be read.
    """
    common = manifest["programs"]
    if isinstance(common, str):
        raise StorageError(
            f"{reader.path} has no programs ({common}), so it needs the model: "
            "mslice_jax.load(path, model=...)."
        )
    hint = _WITH_MODEL if "definition" in manifest else _NO_MODEL
    programs: dict[float | None, _Program] = {}
    cut: Any
    for each in common["each"]:
        exported = _deserialised(reader, manifest, each["file"])
        if axes is not None:
            cut = _cut_by_axes([axes[i] for i in each["leaves"]], each["widths"], part)
        elif each.get("cut"):
            cut = _deserialised(reader, manifest, each["cut"]).call
        else:
            cut = None
        out = each["output"]
        names = [x["name"] for x in each.get("outputs", ())]
        names = names or output_names(tree_from_json(out, lambda _: 0))
        types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in exported.out_avals]
        outputs = dict(zip(names, types, strict=True))
        programs[each["rate"]] = _Program(
            each["leaves"],
            cut,
            out,
            outputs,
            _runner(exported, hint),
            exported.mlir_module,
        )
    scope = jax.export.SymbolicScope()
    arrays = common["arrays"]
    return Saved(
        path=str(reader.path),
        part=part,
        rates=tuple(sorted(rate for rate in programs if rate is not None)),
        programs=programs,
        signature=common["call"],
        names=[x.get("name", f"input_{i}") for i, x in enumerate(arrays)],
        arrays=[type_from(x, scope) for x in arrays],
        batch=common["batch"],
        hint=hint,
    )


def _deserialised(
    reader: Reader, manifest: Mapping[str, Any], file: str
) -> jax.export.Exported:
    content = reader.read(file)
    try:
        exported = jax.export.deserialize(bytearray(content))
        exported.mlir_module()  # an older JAX notices later StableHLO here
    except ImportError as error:
        raise StorageError(f"cannot read {reader.path}: {error}") from error
    except Exception as error:
        again = (
            "Load it with the model, and save it again: mslice_jax.load(path, "
            "model=...)."
            if "definition" in manifest
            else "Export it again with this jax, or update jax."
        )
        raise StorageError(
            f"the programs of {reader.path} were exported by jax "
            f"{manifest['jax']}, and jax {jax.__version__} cannot read them "
            f"({str(error)[:80]!r}). {again}"
        ) from error
    return exported


def _cut_by_axes(
    axes: Sequence[Sequence[Axis]], widths: Mapping[str, int], part: SubNetwork
) -> Callable[[Sequence[Any]], list[Any]] | None:
    held = dict(part.widths)
    if widths == held:
        return None

    def cut(leaves: Sequence[Any]) -> list[Any]:
        return [
            axes_lib.slice_array(x, of, widths, held)
            for x, of in zip(leaves, axes, strict=True)
        ]

    return cut


def _runner(exported: Any, hint: str) -> Callable[..., Any]:
    """A program as a function; to differentiate it is an error that says what to do."""

    @jax.custom_vjp
    def run(weights: Any, arrays: Any) -> Any:
        return exported.call(weights, arrays)

    def refuse(*_: Any) -> NoReturn:
        raise TypeError(
            "a network loaded without its model has no derivative, so it cannot be "
            f"trained. {hint}"
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
