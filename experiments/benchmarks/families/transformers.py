"""The Flax models of Hugging Face transformers 4, with tiny configurations."""

import functools
from typing import Any

import jax

from experiments.benchmarks.families.family import (
    Family,
    Network,
    drawn,
    image,
    load,
    tokens,
)

TINY = {
    "vocab_size": 97,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 64),
    **dict.fromkeys(("embedding_size", "dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim"), 256),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 256),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("d_kv", "head_dim"), 16),
    "image_size": 16,
    "patch_size": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
"""Settings of any configuration that has them."""


def tiny(name: str, **settings: Any) -> Any:
    """The configuration class `name` with tiny settings."""
    kind = getattr(load("transformers"), name)
    known = vars(kind())
    return kind(**{k: v for k, v in TINY.items() if k in known} | settings)


def model_of(name: str, config: Any, **more: Any) -> tuple[Any, Any]:
    """A Flax model without its weights, and random variables for it."""
    model = getattr(load("transformers"), name)(config, _do_init=False, **more)
    types = model.params_shape_tree
    with_statistics = "batch_stats" in types
    return model, drawn(types if with_statistics else {"params": types})


def as_network(name: str, config: Any, *inputs: Any, **more: Any) -> Network:
    """A Flax model class as a function of its variables, in inference mode."""
    model, variables = model_of(name, config, **more)

    def function(variables: Any, *inputs: Any) -> Any:
        given = variables if "batch_stats" in variables else variables["params"]
        return model(*inputs, params=given).to_tuple()

    return Network(model=function, variables=variables, inputs=inputs)


def text(model: str, config: str, **settings: Any) -> Network:
    """An encoder or a decoder of text."""
    return as_network(model, tiny(config, **settings), tokens(2, 16))


def pair(model: str, config: str, **settings: Any) -> Network:
    """An encoder and a decoder of text."""
    both, variables = model_of(model, tiny(config, **settings))

    def function(variables: Any, source: jax.Array, target: jax.Array) -> Any:
        return both(source, decoder_input_ids=target, params=variables["params"]).logits

    inputs = tokens(2, 16), tokens(2, 12)
    return Network(model=function, variables=variables, inputs=inputs)


def vision(model: str, config: str, **settings: Any) -> Network:
    """An encoder of images in NCHW."""
    return as_network(model, tiny(config, **settings), image(2, 3, 16, 16))


def clip() -> Network:
    """Images and text into one space."""
    config = load("transformers").CLIPConfig(
        text_config=tiny("CLIPTextConfig").to_dict(),
        vision_config=tiny("CLIPVisionConfig").to_dict(),
        projection_dim=32,
    )
    model, variables = model_of("FlaxCLIPModel", config)

    def function(variables: Any, ids: jax.Array, pixels: jax.Array) -> Any:
        outputs = model(ids, pixels, params=variables["params"])
        return outputs.logits_per_image, outputs.text_embeds, outputs.image_embeds

    inputs = tokens(2, 16), image(2, 3, 16, 16)
    return Network(model=function, variables=variables, inputs=inputs)


def wav2vec2() -> Network:
    """Speech to letters."""
    config = tiny(
        "Wav2Vec2Config",
        conv_dim=(32, 32),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )
    return as_network("FlaxWav2Vec2ForCTC", config, image(2, 400), input_shape=(1, 400))


def whisper() -> Network:
    """Speech to text."""
    config = tiny(
        "WhisperConfig",
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=32,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model, variables = model_of(
        "FlaxWhisperForConditionalGeneration", config, input_shape=(1, 8, 32)
    )

    def function(variables: Any, mel: jax.Array, target: jax.Array) -> Any:
        return model(mel, target, params=variables["params"]).logits

    inputs = image(2, 8, 32), tokens(2, 12)
    return Network(model=function, variables=variables, inputs=inputs)


def generation(model: str, config: str, **search: Any) -> Network:
    """Generation of a model: a while loop around it with its caches."""
    speaker, variables = model_of(model, tiny(config))
    encoded = speaker.config.is_encoder_decoder

    def function(variables: Any, prompt: jax.Array) -> jax.Array:
        params = variables["params"]
        ids = speaker.generate(prompt, params=params, max_length=12, **search).sequences
        # Tokens alone would show little of a network.
        return speaker(
            prompt if encoded else ids,
            **({"decoder_input_ids": ids} if encoded else {}),
            params=params,
        ).logits

    return Network(model=function, variables=variables, inputs=(tokens(2, 6),))


def family(
    name: str, kind: Any, *args: str, at_most: float = 0.3, **settings: Any
) -> Family:
    """One family of transformers."""
    return Family(
        name=name,
        package="transformers",
        module="transformers",
        build=functools.partial(kind, *args, **settings),
        at_most=at_most,
    )


FAMILIES = (
    family("ALBERT", text, "FlaxAlbertForMaskedLM", "AlbertConfig"),
    family("BART", pair, "FlaxBartForConditionalGeneration", "BartConfig"),
    family("BEiT", vision, "FlaxBeitForImageClassification", "BeitConfig"),
    family("BERT", text, "FlaxBertForMaskedLM", "BertConfig"),
    family(
        "BigBird",
        text,
        "FlaxBigBirdForMaskedLM",
        "BigBirdConfig",
        block_size=4,
        num_random_blocks=1,
    ),
    family(
        "Blenderbot",
        pair,
        "FlaxBlenderbotForConditionalGeneration",
        "BlenderbotConfig",
    ),
    family(
        "BlenderbotSmall",
        pair,
        "FlaxBlenderbotSmallForConditionalGeneration",
        "BlenderbotSmallConfig",
    ),
    family("BLOOM", text, "FlaxBloomForCausalLM", "BloomConfig"),
    family("CLIP", clip),
    family("DINOv2", vision, "FlaxDinov2ForImageClassification", "Dinov2Config"),
    family("DistilBERT", text, "FlaxDistilBertForMaskedLM", "DistilBertConfig"),
    family("ELECTRA", text, "FlaxElectraForMaskedLM", "ElectraConfig"),
    family("Gemma", text, "FlaxGemmaForCausalLM", "GemmaConfig", num_key_value_heads=1),
    family("GPT-2", text, "FlaxGPT2LMHeadModel", "GPT2Config"),
    family(
        "GPT-Neo",
        text,
        "FlaxGPTNeoForCausalLM",
        "GPTNeoConfig",
        attention_types=[[["global", "local"], 1]],
    ),
    family("GPT-J", text, "FlaxGPTJForCausalLM", "GPTJConfig", rotary_dim=8),
    family("LLaMA", text, "FlaxLlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    family("Marian", pair, "FlaxMarianMTModel", "MarianConfig"),
    family("mBART", pair, "FlaxMBartForConditionalGeneration", "MBartConfig"),
    family(
        "Mistral",
        text,
        "FlaxMistralForCausalLM",
        "MistralConfig",
        num_key_value_heads=2,
    ),
    family("OPT", text, "FlaxOPTForCausalLM", "OPTConfig", word_embed_proj_dim=64),
    family("Pegasus", pair, "FlaxPegasusForConditionalGeneration", "PegasusConfig"),
    # The inputs of a group are fixed: its convolution halves instead of quartering.
    family(
        "RegNet",
        vision,
        "FlaxRegNetForImageClassification",
        "RegNetConfig",
        at_most=0.33,
        embedding_size=32,
        hidden_sizes=[64, 128],
        depths=[1, 1],
        groups_width=8,
    ),
    family(
        "ResNet",
        vision,
        "FlaxResNetForImageClassification",
        "ResNetConfig",
        embedding_size=32,
        hidden_sizes=[64, 128],
        depths=[1, 1],
    ),
    family("RoBERTa", text, "FlaxRobertaForMaskedLM", "RobertaConfig"),
    family(
        "RoBERTa-PreLayerNorm",
        text,
        "FlaxRobertaPreLayerNormForMaskedLM",
        "RobertaPreLayerNormConfig",
    ),
    family("RoFormer", text, "FlaxRoFormerForMaskedLM", "RoFormerConfig"),
    family("ViT", vision, "FlaxViTForImageClassification", "ViTConfig"),
    family("wav2vec 2.0", wav2vec2),
    family("Whisper", whisper),
    family("XGLM", text, "FlaxXGLMForCausalLM", "XGLMConfig"),
    family("XLM-RoBERTa", text, "FlaxXLMRobertaForMaskedLM", "XLMRobertaConfig"),
    family("GPT-2 generation", generation, "FlaxGPT2LMHeadModel", "GPT2Config"),
    family(
        "BART beam search",
        generation,
        "FlaxBartForConditionalGeneration",
        "BartConfig",
        num_beams=2,
    ),
)
