"""A network at one rate as a SavedModel of TensorFlow, by jax2tf (extra `tf`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .exported import Exporter, NotExported, line


def write_saved_model(
    folder: Path,
    exporter: Exporter,
    weights: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    platforms: Sequence[str],
) -> None:
    """Writes a folder with one signature, `serving_default`, and the weights beside it.

    Args:
      folder: to be made.
      exporter: of one rate.
      weights: those that its function takes.
      inputs, outputs: names of the arrays of the call and of its result.
      platforms: what the program runs on.

    Raises:
      ImportError: if TensorFlow is not installed.
      NotExported: if jax2tf cannot convert the function.
    """
    try:
        import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
        from jax.experimental import jax2tf
    except ImportError as error:
        raise ImportError(
            'export to TensorFlow needs it: pip install "mslice_jax[tf]".'
        ) from error
    (body,) = exporter.bodies
    try:
        shapes: Any = [f"({', '.join(map(str, x.shape))})" for x in exporter.arrays]
        run = jax2tf.convert(
            body.__call__,
            polymorphic_shapes=[None, shapes],
            native_serialization_platforms=tuple(platforms),
            with_gradient=False,
        )
        module: Any = tf.Module()
        held: list[Any] = [np.asarray(x) for x in weights]
        module.weights = [tf.Variable(x, trainable=False) for x in held]
        types = [
            tf.TensorSpec(
                [size if isinstance(size, int) else None for size in x.shape],
                tf.as_dtype(x.dtype),
                name=name.replace("/", "_"),
            )
            for name, x in zip(inputs, exporter.arrays, strict=True)
        ]

        @tf.function(autograph=False, input_signature=types)
        def serve(*arrays: Any) -> Any:
            results = run(module.weights, list(arrays))
            return dict(zip(outputs, results, strict=True))

        module.serve = serve
        tf.saved_model.save(module, str(folder), signatures=serve)
    except Exception as error:
        raise NotExported(line(error)) from error
