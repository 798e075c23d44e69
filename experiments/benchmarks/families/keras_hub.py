"""The networks of KerasHub, on Keras' JAX backend, with tiny configurations."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, load, tokens
from experiments.benchmarks.families.keras import (
    as_network,
    load_keras,
    named_variables,
)

TINY = {
    **dict.fromkeys(("vocabulary_size", "vocab_size"), 97),
    **dict.fromkeys(("hidden_dim", "hidden_size", "embedding_dim"), 64),
    **dict.fromkeys(("encoder_hidden_dim", "decoder_hidden_dim"), 64),
    **dict.fromkeys(("num_layers", "encoder_num_layers", "decoder_num_layers"), 2),
    **dict.fromkeys(("num_heads", "num_query_heads", "num_attention_heads"), 4),
    **dict.fromkeys(("encoder_num_heads", "decoder_num_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("intermediate_dim", "mlp_dim", "intermediate_size"), 256),
    **dict.fromkeys(("encoder_intermediate_dim", "decoder_intermediate_dim"), 256),
    **dict.fromkeys(("head_dim", "head_size"), 16),
    **dict.fromkeys(("max_sequence_length", "max_position_embeddings"), 64),
    "image_shape": (32, 32, 3),
    "patch_size": 8,
}
"""Settings of any backbone that has them."""


def task(backbone: str, head: str | None, settings: dict[str, Any]) -> Any:
    """A backbone with tiny settings, and the head of a task if there is one."""
    load_keras()
    models = load("keras_hub").models
    kind = getattr(models, backbone)
    known = inspect.signature(kind.__init__).parameters
    tiny = {name: value for name, value in TINY.items() if name in known}
    model = kind(**tiny | settings)
    if head is None:
        return model
    # Only a classifier takes the number of its outputs.
    classes = {} if head.endswith("LM") else {"num_classes": 10}
    return getattr(models, head)(backbone=model, preprocessor=None, **classes)


def network(backbone: str, head: str | None, settings: dict[str, Any]) -> Network:
    """A backbone and its head; without a head, a linear map stands in for one."""
    model = task(backbone, head, settings)
    if head is None:
        return as_network(model, readout=settings.get("num_output_channels", 64))
    return as_network(model)


def generation(backbone: str, head: str) -> Network:
    """Greedy generation of a decoder: a while loop around it with its cache."""
    model = task(backbone, head, {})
    model.compile(sampler="greedy")
    forward, variables = as_network(model), named_variables(model)

    def function(values: Any, ids: jax.Array, given: jax.Array) -> Any:
        state = [(variable, values[name]) for name, variable in variables.items()]
        inputs = {"token_ids": ids, "padding_mask": given}
        with load("keras").StatelessScope(state, initialize_variables=False):
            inputs = model.generate_step(inputs, stop_token_ids=None)
        # Tokens alone would show little of a network.
        return forward.function(values, inputs)

    given = jnp.broadcast_to(jnp.arange(16) < 6, (2, 16))
    return Network(
        model=function,
        variables=forward.variables,
        inputs=(tokens(2, 16) * given, given),
    )


def family(
    name: str, backbone: str, head: str | None, *, at_most: float = 0.3, **settings: Any
) -> Family:
    """One family of KerasHub."""
    return Family(
        name=name,
        package="keras-hub",
        module="keras_hub",
        build=functools.partial(network, backbone, head, settings),
        at_most=at_most,
    )


FAMILIES = (
    # Text.
    family("DeBERTa-v3", "DebertaV3Backbone", "DebertaV3MaskedLM", bucket_size=8),
    family("ESM-2", "ESMBackbone", "ESMMaskedPLM"),
    family("Falcon", "FalconBackbone", "FalconCausalLM"),
    # A Fourier transform over the hidden axis fixes it.
    family("FNet", "FNetBackbone", "FNetMaskedLM", at_most=0.55),
    family(
        "Gemma 3",
        "Gemma3Backbone",
        "Gemma3CausalLM",
        image_size=32,
        use_sliding_window_attention=True,
        sliding_window_size=8,
    ),
    family("GPT-NeoX", "GPTNeoXBackbone", "GPTNeoXCausalLM", rotary_percentage=0.5),
    family("GPT-OSS", "GptOssBackbone", "GptOssCausalLM", num_experts=4),
    family("Mixtral", "MixtralBackbone", "MixtralCausalLM", num_experts=4),
    family("Phi-3", "Phi3Backbone", "Phi3CausalLM"),
    family("Qwen 3", "Qwen3Backbone", "Qwen3CausalLM"),
    family(
        "Qwen MoE",
        "QwenMoeBackbone",
        "QwenMoeCausalLM",
        num_experts=4,
        moe_intermediate_dim=64,
        shared_expert_intermediate_dim=64,
        top_k=2,
    ),
    family(
        "Qwen 3.5",
        "Qwen3_5Backbone",
        "Qwen3_5CausalLM",
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
    family("RoFormer v2", "RoformerV2Backbone", "RoformerV2MaskedLM"),
    family(
        "RWKV-7",
        "RWKV7Backbone",
        "RWKV7CausalLM",
        gate_lora=16,
        mv_lora=8,
        aaa_lora=8,
        decay_lora=8,
    ),
    family(
        "SmolLM3",
        "SmolLM3Backbone",
        "SmolLM3CausalLM",
        attention_bias=False,
        attention_dropout=0.0,
        mlp_bias=False,
        rope_layer_enabled_list=[True, False],
        layer_types=["full_attention", "full_attention"],
        layer_norm_epsilon=1e-6,
        rope_theta=10000.0,
        partial_rotary_factor=1.0,
    ),
    family("T5", "T5Backbone", None),
    family(
        "T5Gemma",
        "T5GemmaBackbone",
        "T5GemmaSeq2SeqLM",
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2,
        encoder_head_dim=16,
        decoder_head_dim=16,
        sliding_window=8,
        encoder_layer_types=["sliding_attention", "full_attention"],
        decoder_layer_types=["sliding_attention", "full_attention"],
        cross_attention_hidden_size=64,
    ),
    family("XLNet", "XLNetBackbone", None),
    # Images.
    family(
        "CSPNet",
        "CSPNetBackbone",
        "CSPNetImageClassifier",
        stem_filters=32,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 1],
        stackwise_strides=[1, 2],
        stem_padding="same",
        stackwise_num_filters=[32, 64],
        block_type="dark_block",
        stage_type="csp",
        down_growth=True,
        bottle_ratio=[0.5, 1.0],
        block_ratio=[1.0, 0.5],
        expand_ratio=[2.0, 1.0],
        cross_linear=True,
    ),
    family("DeiT", "DeiTBackbone", "DeiTImageClassifier"),
    family("DINOv3", "DINOV3Backbone", None),
    family(
        "HGNetV2",
        "HGNetV2Backbone",
        "HGNetV2ImageClassifier",
        depths=[1, 1],
        embedding_size=32,
        hidden_sizes=[64, 128],
        stem_channels=[3, 16, 32],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[[32, 16, 64, 1, 2, 3], [64, 32, 128, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
    ),
    family(
        "MiT",
        "MiTBackbone",
        "MiTImageClassifier",
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[2, 4],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[32, 64],
    ),
    family(
        "Swin",
        "SwinTransformerBackbone",
        "SwinTransformerImageClassifier",
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        patch_size=2,
        drop_path=0.0,
    ),
    family(
        "ViTDet",
        "ViTDetBackbone",
        None,
        global_attention_layer_indices=[1],
        window_size=2,
        num_output_channels=32,
    ),
    family(
        "VideoPrism",
        "VideoPrismBackbone",
        None,
        num_frames=2,
        num_spatial_layers=1,
        num_temporal_layers=1,
        num_auxiliary_layers=1,
    ),
    # A loop around a network and its cache.
    *(
        Family(
            name=f"{name} generation",
            package="keras-hub",
            module="keras_hub",
            build=functools.partial(generation, f"{kind}Backbone", f"{kind}CausalLM"),
        )
        for name, kind in {"GPT-2": "GPT2", "Llama": "Llama"}.items()
    ),
)
