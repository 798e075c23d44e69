"""The signature of a network, read from the call that it serves.

Names come from the arguments of the model; which axes of the outputs are free, from
their shapes for two sizes of the batch and of the length.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.call import Call, is_array, plain_type
from ..core.function import Function
from ..core.paths import path_parts
from ..core.rates import SubNetwork
from .saved import Served
from .signature import Lengths, Signature, Tensor, buckets, types_of


def read(
    net: Served,
    part: SubNetwork,
    inputs: Sequence[Any] = (),
    call: Mapping[str, Any] | None = None,
    *,
    batch_axes: int | Mapping[str, int] = 0,
    batch_sizes: Sequence[int],
    lengths: Lengths | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Signature:
    """The signature of a network; see `Executor` for what may be given.

    Args:
      net: of types.
      part: a sub-network that is traced for the shapes of the outputs.

    Raises:
      ValueError: for a call that cannot be served in batches.
    """
    function = net.definition.function
    split, arrays = net.definition.call, list(net.definition.arrays)
    if inputs or call is not None:
        args, _ = split.join(arrays)
        split, arrays = Call.split(inputs or args, call or {})
    if function.updates(split.join(arrays)[1]):
        raise ValueError(
            "the call updates variables (mutable), and a server keeps none. Give the "
            "call of inference, such as call={'train': False}."
        )
    batches = buckets(batch_sizes, "batch_sizes")
    each = (None,) if lengths is None else buckets(lengths.buckets, "lengths")
    tensors = _inputs(function, split, arrays, batch_axes, lengths)
    made = _made(tensors, lengths)
    brought = tuple(x for x in tensors if x.name not in made)
    if not brought:
        raise ValueError("no input is left for a request to bring.")
    again = iter(_renamed(brought, input_names, "input_names"))
    tensors = tuple(x if x.name in made else next(again) for x in tensors)

    def shapes(batch: int, length: int | None) -> Any:
        def run(net: Served, arrays: Sequence[Any]) -> Any:
            args, kwargs = split.join(arrays)
            return net(part, *args, **kwargs)

        return jax.eval_shape(run, net, types_of(tensors, batch, length))

    outputs = _outputs(shapes, batches, each)
    outputs = _renamed(outputs, output_names, "output_names")
    return Signature(split, tensors, outputs, batches, each, made, lengths)


def _inputs(
    function: Function,
    call: Call,
    arrays: Sequence[Any],
    batch_axes: int | Mapping[str, int],
    lengths: Lengths | None,
) -> tuple[Tensor, ...]:
    """The arrays of a call, with names and free axes.

    Raises:
      ValueError: if one is a random key, or has no batch axis, or axes do not fit.
    """
    types = [plain_type(x) for x in arrays]
    names = _input_names(function, call, arrays)
    if not names:
        raise ValueError("expected a call with an array; this one has no input.")
    for name, x in zip(names, types, strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            raise ValueError(
                f"input {name!r} is a random key, which a request cannot bring. Give "
                "the call of inference, such as call={'train': False}."
            )
    rows = _axes(batch_axes, names, "batch_axes")
    first = types[0].shape
    if lengths is None:
        along: Mapping[str, int] = {}
    elif lengths.axes is None:
        size = first[1] if len(first) > 1 else None
        same = [x.shape[1:2] == (size,) for x in types]
        along = {name: 1 for name, fits in zip(names, same, strict=True) if fits}
    else:
        along = _axes(lengths.axes, names, "axes of Lengths")
    if lengths is not None and not along:
        raise ValueError("no input has an axis of free length; name it in Lengths.axes")
    found = []
    for name, x in zip(names, types, strict=True):
        axes = [rows.get(name, 0)] + ([along[name]] if name in along else [])
        if any(not 0 <= axis < len(x.shape) for axis in axes) or len({*axes}) < len(
            axes
        ):
            raise ValueError(
                f"input {name!r} has shape {tuple(x.shape)}, and no such free axes "
                f"{axes}. Every input has the rows of a batch along one axis, 0 unless "
                "batch_axes names another."
            )
        shape = tuple(-1 if i in axes else n for i, n in enumerate(x.shape))
        if not all(isinstance(n, int) for n in shape):
            raise ValueError(f"input {name!r} has another free axis: {x.shape}.")
        found.append(Tensor(name, np.dtype(x.dtype), shape, axes[0], along.get(name)))
    sizes = {
        t.name: x.shape[t.batch]
        for t, x in zip(found, types, strict=True)
        if isinstance(x.shape[t.batch], int)
    }
    if len({*sizes.values()}) > 1:
        raise ValueError(
            f"every input has one entry for each row of a batch; got {sizes}. Name the "
            "axes of the rows in batch_axes."
        )
    return tuple(found)


def _outputs(
    shapes: Callable[[int, int | None], Any],
    batches: Sequence[int],
    lengths: Sequence[int | None],
) -> tuple[Tensor, ...]:
    """The outputs with names and free axes, found by the shapes for two sizes of each.

    Args:
      shapes: the tree of output types for a batch and a length.
      batches: the batch buckets.
      lengths: the length buckets.

    Raises:
      ValueError: if an output has no entry for each row.
    """
    many, length = batches[-1], lengths[-1]
    few = batches[-2] if len(batches) > 1 else many + 1
    here, there = shapes(many, length), shapes(few, length)
    leaves = jax.tree_util.tree_leaves_with_path(here)
    along = _growing(here, there, many)
    at: list[list[int]] = [[] for _ in leaves]
    if length is not None and length > 1:
        short = lengths[-2] if len(lengths) > 1 else length - 1
        at = _growing(here, shapes(many, short), length)
    found = []
    for (path, x), rows, free in zip(leaves, along, at, strict=True):
        name = _output_name(path)
        if len(rows) != 1 or len(free) > 1:
            raise ValueError(
                f"output {name!r} has shape {tuple(x.shape)} for {many} rows"
                f"{f' of length {length}' if length else ''}: expected one axis with "
                "an entry for each row, and at most one of the length of the inputs. "
                "Return what belongs to single rows; nothing else can be cut back."
            )
        axes = {*rows, *free}
        shape = tuple(-1 if i in axes else n for i, n in enumerate(x.shape))
        dtype = np.dtype(x.dtype)
        found.append(Tensor(name, dtype, shape, rows[0], free[0] if free else None))
    if not found:
        raise ValueError("the network returns no array.")
    return tuple(found)


def _made(tensors: Sequence[Tensor], lengths: Lengths | None) -> frozenset[str]:
    """The inputs that no request brings: a mask, and the lengths of the rows."""
    if lengths is None:
        return frozenset()
    wanted = {lengths.mask: 2, lengths.count: 1}
    wanted = {name: rank for name, rank in wanted.items() if name is not None}
    found = {x.name: x for x in tensors}
    for name, rank in wanted.items():
        if name not in found or found[name].shape != (-1,) * rank:
            axes = "the rows" if rank == 1 else "the rows and the positions"
            raise ValueError(
                f"Lengths names {name!r}: expected an input with an axis for {axes} "
                f"and no other; got { {x.name: list(x.shape) for x in tensors} }."
            )
    return frozenset(wanted)


def _renamed(
    tensors: tuple[Tensor, ...], names: Sequence[str] | None, what: str
) -> tuple[Tensor, ...]:
    """Tensors under the user's names.

    Raises:
      ValueError: if there are more or fewer names, or one stands twice.
    """
    given = [x.name for x in tensors] if names is None else list(names)
    if len(given) != len(tensors) or len(set(given)) < len(given):
        raise ValueError(
            f"{what} are {len(tensors)} different names, now "
            f"{[x.name for x in tensors]}; got {given}."
        )
    return tuple(
        Tensor(name, x.dtype, x.shape, x.batch, x.length)
        for name, x in zip(given, tensors, strict=True)
    )


def _growing(here: Any, there: Any, size: int) -> list[list[int]]:
    """For each leaf the axes that differ between two sizes.

    An axis that differs and is not of that size counts twice, for it cannot be cut.
    """
    found = []
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        differ = [i for i, n in enumerate(a.shape) if n != b.shape[i]]
        wrong = [i for i in differ if a.shape[i] != size]
        found.append(differ + wrong)
    return found


def _axes(axes: Any, names: Sequence[str], what: str) -> dict[str, int]:
    if isinstance(axes, int):
        return dict.fromkeys(names, axes)
    if unknown := sorted(axes.keys() - set(names)):
        raise ValueError(f"{what} name {unknown}; the inputs are {list(names)}.")
    return dict(axes)


def _input_names(function: Function, call: Call, arrays: Sequence[Any]) -> list[str]:
    args, kwargs = call.join(arrays)
    positional = function.positional(kwargs)
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        if not is_array(leaf):
            continue
        kind, root, *inner = path_parts(path)
        if kind == "0":
            i = int(root)
            root = positional[i] if i < len(positional) else f"input_{i}"
        names.append(".".join([root, *inner]))
    return names


def _output_name(path: Any) -> str:
    parts = path_parts(path)
    if not parts:
        return "output"
    root = f"output_{parts[0]}" if parts[0].isdigit() else parts[0]
    return ".".join([root, *parts[1:]])
