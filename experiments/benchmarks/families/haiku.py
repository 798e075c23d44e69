"""The networks of Haiku, and a few from its modules, as plain functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import (
    Family,
    Network,
    drawn,
    image,
    load,
    tokens,
)


def as_network(forward: Callable[..., Any], *inputs: Any) -> Network:
    """A function with Haiku modules inside as a function of parameters and state."""
    hk = load("haiku")
    transformed = hk.transform_with_state(forward)
    types = jax.eval_shape(transformed.init, jax.random.key(0), *inputs)

    def function(variables: Any, *inputs: Any) -> Any:
        key = jax.random.key(0)
        return transformed.apply(*variables, key, *inputs)[0]

    return Network(model=function, variables=drawn(types), inputs=inputs)


def mlp() -> Network:
    """Three dense layers."""

    def forward(x: jax.Array) -> jax.Array:
        hk = load("haiku")
        return hk.nets.MLP([256, 256, 10])(x)

    return as_network(forward, image(4, 20))


def resnet(*, v2: bool) -> Network:
    """A residual network with bottlenecks."""

    def forward(x: jax.Array) -> jax.Array:
        hk = load("haiku")
        net = hk.nets.ResNet(
            (1, 1, 1, 1), 10, resnet_v2=v2, channels_per_group=(64, 128, 128, 256)
        )
        # The statistics of a batch norm exist once it has trained.
        return net(x, is_training=hk.running_init())

    return as_network(forward, image(2, 32, 32, 3))


def mobilenet() -> Network:
    """Depthwise separable convolutions."""

    def forward(x: jax.Array) -> jax.Array:
        hk = load("haiku")
        net = hk.nets.MobileNetV1((1, 2, 2, 1), (64, 128, 256, 256), 10)
        # The statistics of a batch norm exist once it has trained.
        return net(x, is_training=hk.running_init())

    return as_network(forward, image(2, 32, 32, 3))


def vqvae() -> Network:
    """An autoencoder of images; its code is the nearest entry of a codebook."""

    def forward(x: jax.Array) -> Any:
        hk = load("haiku")
        h = jax.nn.relu(hk.Conv2D(32, 4, 2)(x))
        h = hk.Conv2D(64, 4, 2)(h)
        quantized = hk.nets.VectorQuantizer(64, 32, 0.25)(h, is_training=False)
        h = jax.nn.relu(hk.Conv2DTranspose(32, 4, 2)(quantized["quantize"]))
        return hk.Conv2DTranspose(3, 4, 2)(h), quantized["loss"]

    return as_network(forward, image(2, 16, 16, 3))


def recurrent(kind: str) -> Network:
    """Two recurrent cores under a scan, and a dense layer."""

    def forward(x: jax.Array) -> jax.Array:
        hk = load("haiku")
        core = hk.DeepRNN([getattr(hk, kind)(64), getattr(hk, kind)(64)])
        hidden, _ = hk.dynamic_unroll(
            core, x, core.initial_state(x.shape[1]), time_major=True
        )
        return hk.BatchApply(hk.Linear(10))(hidden)

    return as_network(forward, image(12, 2, 20))


def convolutional_lstm() -> Network:
    """An LSTM whose gates are convolutions, over frames."""

    def forward(x: jax.Array) -> jax.Array:
        hk = load("haiku")
        core = hk.Conv2DLSTM(x.shape[2:4], 32, 3)
        hidden, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return hk.Linear(10)(jnp.mean(hidden[-1], (1, 2)))

    return as_network(forward, image(4, 2, 8, 8, 3))


def decoder() -> Network:
    """The transformer of Haiku's examples, from its modules, with causal attention."""

    def forward(ids: jax.Array) -> jax.Array:
        hk = load("haiku")

        def norm(x: jax.Array) -> jax.Array:
            return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)

        small = hk.initializers.VarianceScaling(1.0)
        h = hk.Embed(97, 64)(ids)
        length = ids.shape[1]
        h += hk.get_parameter("positions", (length, 64), init=small)
        mask = jnp.tril(jnp.ones((1, 1, length, length)))
        for _ in range(2):
            attention = hk.MultiHeadAttention(4, 16, model_size=64, w_init=small)
            normed = norm(h)
            h += attention(normed, normed, normed, mask=mask)
            h += hk.nets.MLP([256, 64], activation=jax.nn.gelu)(norm(h))
        return hk.Linear(97)(norm(h))

    return as_network(forward, tokens(2, 16))


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(
        name=name, package="dm-haiku", module="haiku", build=build, **settings
    )


FAMILIES = (
    _family("MLP", mlp, maskable=True, quick=True),
    _family("ResNet", lambda: resnet(v2=False), maskable=True),
    _family("ResNetV2", lambda: resnet(v2=True), maskable=True),
    _family("MobileNetV1", mobilenet, maskable=True),
    _family("VQ-VAE", vqvae),
    _family("LSTM", lambda: recurrent("LSTM"), maskable=True, quick=True),
    _family("GRU", lambda: recurrent("GRU"), maskable=True),
    _family("Conv-LSTM", convolutional_lstm, maskable=True),
    _family("Transformer", decoder, quick=True),
)
