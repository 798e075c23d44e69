"""A convolution as the rules see it, for the tests of its other forms."""

import functools

import jax
import numpy as np
from jax import lax


def prepared(lhs, rhs, strides, padding, dilation, layout):
    """XLA's convolution, its parameters, random lhs and rhs, and a cotangent."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (lhs, rhs))
    xla = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=layout,
    )
    (eqn,) = jax.make_jaxpr(xla)(x, w).jaxpr.eqns
    cotangent = rng.normal(size=jax.eval_shape(xla, x, w).shape).astype(np.float32)
    return xla, eqn.params, x, w, cotangent
