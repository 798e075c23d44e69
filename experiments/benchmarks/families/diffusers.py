"""The Flax networks of diffusers 0.35: those of Stable Diffusion."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, drawn, image, load

WIDTHS = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}


def as_network(model: Any, *inputs: Any, returns: Any, **call: Any) -> Network:
    """A Linen module of diffusers; `returns` picks arrays from its output."""

    def function(variables: Any, *inputs: Any) -> Any:
        return returns(model.apply(variables, *inputs, **call))

    types = jax.eval_shape(
        lambda key: model.init(key, *inputs, **call), jax.random.key(0)
    )
    return Network(model=function, variables=drawn(types), inputs=inputs)


def unet() -> Network:
    """The denoiser: a U-Net with cross attention to a text."""
    model = load("diffusers").FlaxUNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **WIDTHS,
    )
    inputs = image(1, 4, 8, 8), jnp.asarray([3]), image(1, 7, 32)
    return as_network(model, *inputs, returns=lambda out: out.sample)


def control() -> Network:
    """ControlNet: the encoder half of the denoiser, with an image as condition."""
    model = load("diffusers").FlaxControlNetModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        **WIDTHS,
    )
    picture = image(1, 3, 64, 64)
    inputs = image(1, 4, 8, 8), jnp.asarray([3]), image(1, 7, 32), picture
    return as_network(
        model,
        *inputs,
        returns=lambda out: (out.down_block_res_samples, out.mid_block_res_sample),
    )


def autoencoder() -> Network:
    """The autoencoder between pixels and the latent image."""
    model = load("diffusers").FlaxAutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        norm_num_groups=8,
        sample_size=16,
    )
    return as_network(model, image(1, 3, 16, 16), returns=lambda out: out.sample)


def _family(name: str, build: Any, *, at_most: float = 0.3) -> Family:
    return Family(
        name=name,
        package="diffusers",
        module="diffusers",
        build=build,
        at_most=at_most,
    )


FAMILIES = (
    # Groups of its norms straddle the parts of a skip connection, which fixes them.
    _family("Stable Diffusion U-Net", unet, at_most=0.35),
    _family("ControlNet", control),
    _family("AutoencoderKL", autoencoder),
)
