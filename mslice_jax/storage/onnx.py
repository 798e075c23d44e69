"""A network at one rate as an ONNX model, by jax2onnx (extra `onnx`)."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cpu.equations import bind, read
from .answers import close, made_up
from .exported import Body, Exporter, NotExported, line


def onnx_model(
    exporter: Exporter,
    weights: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    check: bool = True,
) -> bytes:
    """The serialised model: the weights are in it, a batch of any size stays free.

    Args:
      exporter: of one rate.
      weights: those that its function takes.
      inputs, outputs: names of the arrays of the call and of its result.
      check: whether onnxruntime runs it, and gives what the function gives.

    Raises:
      ImportError: if jax2onnx is not installed.
      NotExported: for a primitive that jax2onnx does not have, for a model that does
        not run or gives something else, and the like.
    """
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            'export to ONNX needs jax2onnx: pip install "mslice_jax[onnx]".'
        ) from error
    (body,) = exporter.bodies
    held = [np.asarray(x) for x in weights]
    try:
        # Traced here: while jax2onnx traces, functions of jax.numpy and Flax give
        # primitives of its own, for which there is no rule.
        program = jax.make_jaxpr(lambda *arrays: tuple(body(held, arrays)))(
            *exporter.arrays
        )
        model = jax2onnx.to_onnx(
            lambda *arrays: _run(program.jaxpr, program.consts, arrays),
            exporter.arrays,
            model_name="mslice_jax",
            input_names=list(inputs),
            output_names=list(outputs),
        )
        model.producer_name = "mslice_jax"
        model.producer_version = importlib.metadata.version("mslice_jax")
        content = model.SerializeToString()
    except Exception as error:
        raise NotExported(line(error)) from error
    if check:
        _check(onnxruntime, content, body, held, exporter.arrays, inputs, outputs)
    return content


# -- what jax2onnx is given


def _run(jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """Evaluates a program; poolings are asked for as a user of Flax would.

    Of a pooling's primitive jax2onnx makes one over all axes, batch and channels too,
    which no runtime has for images; of Flax's function the pooling that is meant.
    """
    known = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arrays], strict=True)
    )
    for eqn in jaxpr.eqns:
        values = read(eqn.invars, known)
        inner = eqn.params.get("jaxpr") if eqn.primitive.name == "jit" else None
        if (pooled := _pooled(eqn, values)) is not None:
            found = [pooled]
        elif inner is not None and _pools(inner.jaxpr):
            found = _run(inner.jaxpr, inner.consts, values)
        else:
            found = bind(eqn, values)
        known.update(zip(eqn.outvars, found, strict=True))
    return read(jaxpr.outvars, known)


def _pools(jaxpr: Any) -> bool:
    inner = [e.params["jaxpr"].jaxpr for e in jaxpr.eqns if e.primitive.name == "jit"]
    own = any(eqn.primitive.name == "reduce_window_max" for eqn in jaxpr.eqns)
    return own or any(map(_pools, inner))


def _pooled(eqn: Any, values: Sequence[Any]) -> Any:
    """What a pooling by maximum gives; None for anything else."""
    if eqn.primitive.name != "reduce_window_max":
        return None
    p, (x,) = eqn.params, values
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    dilated = any(n != 1 for n in (*p["base_dilation"], *p["window_dilation"]))
    each = zip(window, strides, padding, strict=True)
    still = [i for i, of in enumerate(each) if of == (1, 1, (0, 0))]
    along = [i for i in range(x.ndim) if i not in still]
    while len(still) > 2:  # a window of one entry
        along.append(still.pop())
    if dilated or len(still) != 2:
        return None
    from flax import linen  # jax2onnx brings it

    order = [still[0], *sorted(along), still[1]]
    x = jnp.transpose(x, order)
    pads = [padding[i] for i in order]
    if any(map(any, pads)):
        lowest = (
            -jnp.inf if jnp.issubdtype(x.dtype, np.inexact) else jnp.iinfo(x.dtype).min
        )
        x = jnp.pad(x, pads, constant_values=lowest)
    inside = order[1:-1]
    x = linen.max_pool(
        x,
        window_shape=tuple(window[i] for i in inside),
        strides=tuple(strides[i] for i in inside),
        padding="VALID",
    )
    return jnp.transpose(x, [order.index(i) for i in range(x.ndim)])


# -- what came of it


def _check(
    onnxruntime: Any,
    content: bytes,
    body: Body,
    weights: Sequence[Any],
    types: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Raises NotExported if onnxruntime gives something else than the function."""
    rng, free = np.random.default_rng(0), {}
    arrays = []
    for x in types:  # another size for each that is free
        shape = [
            n if isinstance(n, int) else free.setdefault(str(n), 3 + len(free))
            for n in x.shape
        ]
        arrays.append(np.asarray(made_up(rng, jax.ShapeDtypeStruct(shape, x.dtype))))
    wanted = [np.asarray(x) for x in jax.jit(body.__call__)(weights, arrays)]
    if any(
        x.dtype.kind == "V" or x.dtype.name == "bfloat16" for x in (*wanted, *arrays)
    ):
        return  # onnxruntime takes and gives only what NumPy itself has
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # the error says it
        session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        found = session.run(list(outputs), dict(zip(inputs, arrays, strict=True)))
    except Exception as error:
        raise NotExported(
            f"onnxruntime does not run what jax2onnx made of it ({line(error)}). "
            "check=False writes it anyhow"
        ) from error
    for name, a, b in zip(outputs, wanted, found, strict=True):
        if not close(a, b, 1e-3):
            raise NotExported(
                f"jax2onnx made another function of it: output {name!r} of a made-up "
                "batch is not what slice_apply gives. check=False writes it anyhow"
            )
