"""Networks that others wrote, to try the transformation on, package by package."""

from experiments.benchmarks.families import (
    diffusers,
    equimo,
    equinox,
    flax_examples,
    flaxmodels,
    haiku,
    jax_resnet,
    jraph,
    keras,
    keras_hub,
    transformers,
)

FAMILIES = (
    *keras.FAMILIES,
    *keras_hub.FAMILIES,
    *transformers.FAMILIES,
    *diffusers.FAMILIES,
    *equinox.FAMILIES,
    *equimo.FAMILIES,
    *haiku.FAMILIES,
    *jax_resnet.FAMILIES,
    *flaxmodels.FAMILIES,
    *jraph.FAMILIES,
    *flax_examples.FAMILIES,
)
