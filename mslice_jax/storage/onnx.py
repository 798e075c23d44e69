"""A network at one rate as an ONNX model, by jax2onnx (extra `onnx`)."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import eval_jaxpr

from .exported import Exporter, NotExported, line


def onnx_model(
    exporter: Exporter,
    weights: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> bytes:
    """The serialised model: the weights are in it, a batch of any size stays free.

    Args:
      exporter: of one rate.
      weights: those that its function takes.
      inputs, outputs: names of the arrays of the call and of its result.

    Raises:
      ImportError: if jax2onnx is not installed.
      NotExported: for a primitive that jax2onnx does not have, and the like.
    """
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
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
            lambda *arrays: eval_jaxpr(program.jaxpr, program.consts, *arrays),
            exporter.arrays,
            model_name="mslice_jax",
            input_names=list(inputs),
            output_names=list(outputs),
        )
        model.producer_name = "mslice_jax"
        model.producer_version = importlib.metadata.version("mslice_jax")
        return model.SerializeToString()
    except Exception as error:
        raise NotExported(line(error)) from error
