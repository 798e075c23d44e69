"""The networks of Flax's own examples, Linen and NNX.

They come with its source distribution. Unpack that, and name the folder:

    pip download --no-deps --no-binary :all: flax && tar xf flax-*.tar.gz
    mv flax-*/examples flax_examples && export PYTHONPATH=$PWD

All are narrower than in the examples.
"""

import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.families.family import (
    Family,
    Network,
    drawn,
    image,
    load,
    tokens,
)
from experiments.benchmarks.families.frameworks import from_linen, from_nnx

VOCABULARY, LENGTH = 61, 12


def example(folder: str, name: str, *without: str) -> Any:
    """A module of an example, which imports its neighbours by their bare names.

    Args:
      folder: the example.
      name: the file.
      *without: modules that its training needs, and its network does not.
    """
    here = pathlib.Path(load("flax_examples").__path__[0], folder)
    neighbours = [path.stem for path in here.glob("*.py")]
    stand_ins = {package: mock.MagicMock() for package in without}
    with mock.patch.dict(sys.modules, stand_ins):  # removes the neighbours, too
        for neighbour in neighbours:
            sys.modules.pop(neighbour, None)
        with mock.patch.object(sys, "path", [str(here), *sys.path]):
            return importlib.import_module(name)


def residual() -> Network:
    """The ResNet of `imagenet`, one bottleneck a stage."""
    models = example("imagenet", "models")
    model = models.ResNet((1, 1, 1, 1), models.BottleneckResNetBlock, 10, 16)
    return from_linen(model, image(2, 64, 64, 3), train=False)


def digits() -> Network:
    """The CNN of `mnist`, in NNX, with batch norms."""
    train = example(
        "mnist",
        "train",
        "tensorflow",
        "tensorflow_datasets",
        "ml_collections",
        "flax.metrics",
        "flax.metrics.tensorboard",
    )
    model = train.CNN(nnx.Rngs(0))
    model.eval()
    return from_nnx(model, image(2, 28, 28, 1), method=lambda model, x: model(x, None))


def autoencoder() -> Network:
    """The variational autoencoder of `vae`."""
    model = example("vae", "models").VAE(latents=20)
    return from_linen(model, image(2, 784), jax.random.key(1))


def agent() -> Network:
    """The convolutional actor and critic of `ppo`."""
    return from_linen(
        example("ppo", "models").ActorCritic(6), 255 * image(1, 84, 84, 4)
    )


def addition() -> Network:
    """The two LSTMs of `seq2seq`, with teacher forcing."""
    model = example("seq2seq", "models").Seq2seq(True, 128, 15)

    def one_hot(length: int) -> jax.Array:
        return jax.nn.one_hot(tokens(2, length, vocabulary=15), 15)

    def function(variables: Any, question: jax.Array, answer: jax.Array) -> Any:
        rngs = {"lstm": jax.random.key(1)}
        return model.apply(variables, question, answer, rngs=rngs)[0]

    inputs = one_hot(8), one_hot(5)
    types = jax.eval_shape(
        lambda key: model.init({"params": key, "lstm": key}, *inputs),
        jax.random.key(0),
    )
    return Network(model=function, variables=drawn(types), inputs=inputs)


def sentiment() -> Network:
    """The bidirectional LSTM with attention of `sst2`, over padded sentences."""
    model = example("sst2", "models").TextClassifier(
        embedding_size=64,
        hidden_size=64,
        vocab_size=VOCABULARY,
        output_size=5,
        dropout_rate=0.0,
        word_dropout_rate=0.0,
        deterministic=True,
    )
    ids = tokens(2, LENGTH, vocabulary=VOCABULARY)
    return from_linen(model, ids, jnp.asarray([LENGTH, 7]))


def tagger() -> Network:
    """The transformer encoder of `nlp_seq`, which tags parts of speech."""
    models = example("nlp_seq", "models")
    config = models.TransformerConfig(VOCABULARY, 17, max_len=32, **_sizes())
    model = models.Transformer(config)
    ids = tokens(2, LENGTH, vocabulary=VOCABULARY)
    types = jax.eval_shape(
        lambda key: model.init(key, inputs=ids, train=False), jax.random.key(0)
    )

    def function(variables: Any, ids: jax.Array) -> jax.Array:
        return model.apply(variables, inputs=ids, train=False)

    return Network(model=function, variables=drawn(types), inputs=(ids,))


def language_model() -> Network:
    """The decoder of `lm1b`."""
    model = _decoder(decode=False)
    return from_linen(model, tokens(2, LENGTH, vocabulary=VOCABULARY))


def sampling() -> Network:
    """`lm1b` samples at a temperature: a while loop around a decoder with caches."""
    model, full = _decoder(decode=True), _decoder(decode=False)
    sample = example("lm1b", "temperature_sampler").temperature_sample
    prompt = jnp.pad(tokens(1, 4, vocabulary=VOCABULARY), ((0, 0), (0, LENGTH - 4)))

    def function(variables: Any, prompt: jax.Array) -> Any:
        cache = _empty_cache(model, prompt)

        def next_logits(ids: jax.Array, cache: Any) -> Any:
            logits, new = model.apply(
                {**variables, "cache": cache}, ids, mutable=["cache"]
            )
            return logits[:, 0], new["cache"]

        ids = sample(prompt, cache, next_logits, jax.random.key(1), eos_token=-1)
        # Tokens alone would show little of a network.
        return full.apply(variables, ids)

    variables = from_linen(full, prompt).variables
    return Network(model=function, variables=variables, inputs=(prompt,))


def translation() -> Network:
    """The encoder and decoder of `wmt`."""
    models = example("wmt", "models")
    config = _config(models, decode=False, share_embeddings=True)
    ids = tokens(2, LENGTH, vocabulary=VOCABULARY)
    return from_linen(models.Transformer(config), ids, ids[:, ::-1])


def beam_search() -> Network:
    """`wmt` translates by beam search: a while loop that reorders its caches."""
    models, decode = example("wmt", "models"), example("wmt", "decode")
    full = models.Transformer(_config(models, decode=False))
    model = models.Transformer(_config(models, decode=True))
    beams, ids = 2, tokens(2, LENGTH, vocabulary=VOCABULARY)

    def function(variables: Any, ids: jax.Array) -> Any:
        types = jax.eval_shape(lambda: model.init(jax.random.key(0), ids, ids))
        cache = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), types["cache"])
        encoded = decode.flat_batch_beam_expand(
            model.apply(variables, ids, method=model.encode), beams
        )
        sources = decode.flat_batch_beam_expand(ids, beams)

        def next_logits(flat: jax.Array, cache: Any) -> Any:
            logits, new = model.apply(
                {**variables, "cache": cache},
                encoded,
                sources,
                flat,
                mutable=["cache"],
                method=model.decode,
            )
            return logits.squeeze(axis=1), new["cache"]

        return decode.beam_search(
            ids, cache, next_logits, beam_size=beams, eos_id=1, max_decode_len=8
        )

    variables = from_linen(full, ids, ids).variables
    return Network(model=function, variables=variables, inputs=(ids,))


def molecules(kind: str) -> Network:
    """A graph network of `ogbg_molpcba` over two graphs."""
    rng = np.random.default_rng(0)
    graph = load("jraph").GraphsTuple(
        nodes=image(10, 9),
        edges=image(24, 3),
        senders=jnp.asarray(rng.integers(0, 10, 24)),
        receivers=jnp.asarray(rng.integers(0, 10, 24)),
        n_node=jnp.asarray([6, 4]),
        n_edge=jnp.asarray([14, 10]),
        globals=image(2, 1),
    )
    model = getattr(example("ogbg_molpcba", "models"), kind)(
        latent_size=64,
        num_mlp_layers=2,
        message_passing_steps=2,
        output_globals_size=12,
    )
    return from_linen(model, graph, returns=lambda graph: graph.globals)


def gemma() -> Network:
    """The decoder of `gemma`, in NNX: two layers, grouped keys, norms of queries."""
    model = _gemma()
    ids = tokens(2, LENGTH, vocabulary=VOCABULARY)
    mask = jnp.broadcast_to(
        jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (2, LENGTH, LENGTH)
    )
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    return from_nnx(
        model,
        ids,
        positions,
        mask,
        method=lambda model, ids, positions, mask: model(ids, positions, None, mask)[0],
    )


def gemma_decoding() -> Network:
    """`gemma` generates: a scan around the decoder with its caches."""
    model, steps = _gemma(), LENGTH

    def generate(model: Any, first: jax.Array) -> jax.Array:
        graphdef, state = nnx.split(model)

        def step(carry: Any, t: jax.Array) -> Any:
            ids, cache = carry
            mask = jnp.broadcast_to(jnp.arange(steps) <= t, (2, 1, steps))
            positions = jnp.broadcast_to(t, (2, 1))
            model = nnx.merge(graphdef, state)
            logits, cache = model(ids, positions, cache, mask)
            return (jnp.argmax(logits, -1), cache), logits[:, 0]

        start = first, model.init_cache(steps, 2)
        return jax.lax.scan(step, start, jnp.arange(steps))[1]

    return from_nnx(model, tokens(2, 1, vocabulary=VOCABULARY), method=generate)


def _sizes() -> dict[str, Any]:
    sizes = {"emb_dim": 64, "qkv_dim": 64, "mlp_dim": 256}
    return {**sizes, "num_heads": 4, "num_layers": 2}


def _config(models: Any, **settings: Any) -> Any:
    return models.TransformerConfig(
        VOCABULARY, VOCABULARY, max_len=32, deterministic=True, **_sizes(), **settings
    )


def _decoder(*, decode: bool) -> Any:
    models = example("lm1b", "models")
    return models.TransformerLM(_config(models, decode=decode))


def _empty_cache(model: Any, ids: jax.Array) -> Any:
    types = jax.eval_shape(lambda: model.init(jax.random.key(0), ids))["cache"]
    return jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), types)


def _gemma() -> Any:
    config = example("gemma", "transformer_cfg")
    kinds = config.AttentionType
    norms = config.QueryPreAttentionNormalisation
    return example("gemma", "transformer").Transformer(
        config.TransformerConfig(
            num_layers=2,
            num_embed=VOCABULARY,
            embed_dim=64,
            hidden_dim=256,
            num_heads=8,
            head_dim=16,
            num_kv_heads=4,
            final_logit_softcap=None,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
            use_qk_norm=True,
            attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL),
            sliding_window_size=4,
            query_pre_attn_norm=norms.BY_ONE_OVER_SQRT_HEAD_DIM,
        ),
        rngs=nnx.Rngs(0),
    )


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(
        name=name, package="flax", module="flax_examples", build=build, **settings
    )


FAMILIES = (
    _family("ResNet (imagenet)", residual, maskable=True),
    _family("CNN (mnist, NNX)", digits, maskable=True),
    # Two of its layers are between 784 pixels and 500 units.
    _family("VAE (vae)", autoencoder, maskable=True, at_most=0.55),
    _family("ActorCritic (ppo)", agent, maskable=True),
    _family("LSTMs (seq2seq)", addition, maskable=True),
    _family("BiLSTM (sst2)", sentiment, maskable=True),
    _family("Encoder (nlp_seq)", tagger),
    _family("Decoder (lm1b)", language_model),
    _family("Sampling (lm1b)", sampling),
    _family("Transformer (wmt)", translation),
    _family("Beam search (wmt)", beam_search),
    _family("GraphNet (ogbg)", lambda: molecules("GraphNet")),
    _family("GraphConvNet (ogbg)", lambda: molecules("GraphConvNet")),
    _family("Gemma (gemma, NNX)", gemma),
    _family("Generation (gemma, NNX)", gemma_decoding),
)
