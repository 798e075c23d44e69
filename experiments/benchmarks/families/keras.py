"""The networks of `keras.applications`, on Keras' JAX backend, as plain functions."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.families.family import (
    Family,
    Network,
    drawn,
    image,
    load,
    tokens,
)


def load_keras() -> Any:
    """Keras, with JAX as its backend unless the environment says otherwise."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = load("keras")
    keras.utils.clear_session()  # restarts the numbers in names of layers
    return keras


def as_network(model: Any, *, readout: int = 0) -> Network:
    """A Keras model as a function of its variables, in inference mode.

    Args:
      model: its variables may be without values, as in `application`.
      readout: the hidden size, for a model without a head: a linear map of every
        output's last axis to 10 numbers then stands in for the head.
    """
    scope = load("keras").StatelessScope
    trained, names = model.trainable_variables, named_variables(model)
    types = {
        name: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        for name, variable in names.items()
    }
    if readout:
        types["readout"] = jax.ShapeDtypeStruct((readout, 10), np.float32)

    def function(variables: dict[str, jax.Array], inputs: Any) -> Any:
        values = [variables[name] for name in names]
        # Without this scope the call would give values to variables that have none.
        with scope(initialize_variables=False):
            outputs, _ = model.stateless_call(
                values[: len(trained)], values[len(trained) :], inputs, training=False
            )
        if not readout:
            return outputs
        return jax.tree.map(lambda y: y @ variables["readout"], outputs)

    asked = model.input
    if isinstance(asked, dict):
        inputs: Any = {name: example(name, x.shape) for name, x in asked.items()}
    else:
        inputs = example(asked.name, asked.shape)
    return Network(model=function, variables=drawn(types), inputs=(inputs,))


def named_variables(model: Any) -> dict[str, Any]:
    """The variables of a Keras model by name, the trainable ones first."""
    named: dict[str, Any] = {}
    for variable in (*model.trainable_variables, *model.non_trainable_variables):
        name = variable.path
        while name in named:  # Keras does not make its layers' names unique
            name += "'"
        named[name] = variable
    return named


def example(name: str, shape: tuple[int | None, ...]) -> Any:
    """An input of a Keras model, by its name and shape."""
    if len(shape) >= 4:
        return image(*(2 if size is None else size for size in shape))
    if "mask_positions" in name:
        return jnp.tile(jnp.asarray([2, 5, 7], jnp.int32), (2, 1))
    if "mask" in name:
        return jnp.ones((2, 16), jnp.int32)
    return jnp.zeros((2, 16), jnp.int32) if "segment" in name else tokens(2, 16)


def application(name: str, size: int = 32, **settings: Any) -> Network:
    """A network of `keras.applications` for small images with 10 classes."""
    keras = load_keras()
    # The initializers do not run: they take longer than all the proofs.
    with keras.StatelessScope(initialize_variables=False):
        model = getattr(keras.applications, name)(
            weights=None,
            input_shape=(size, size, 3),
            classes=10,
            classifier_activation=None,
            **settings,
        )
    return as_network(model)


def family(name: str, member: str, size: int = 32, **settings: Any) -> Family:
    """One family of `keras.applications`."""
    return Family(
        name=name,
        package="keras",
        module="keras",
        build=functools.partial(application, member, size, **settings),
        maskable=name not in ("ConvNeXt",),  # layer norms
    )


FAMILIES = (
    family("VGG", "VGG16"),
    family("ResNet", "ResNet50"),
    family("ResNetV2", "ResNet50V2"),
    family("DenseNet", "DenseNet121"),
    family("Inception-v3", "InceptionV3", 75),
    family("Inception-ResNet-v2", "InceptionResNetV2", 75),
    family("Xception", "Xception", 71),
    family("MobileNet", "MobileNet", alpha=0.25),
    family("MobileNetV2", "MobileNetV2", alpha=0.35),
    family("MobileNetV3", "MobileNetV3Small"),
    family("EfficientNet", "EfficientNetB0"),
    family("EfficientNetV2", "EfficientNetV2B0"),
    family("NASNet", "NASNetMobile"),
    family("ConvNeXt", "ConvNeXtTiny"),
)
