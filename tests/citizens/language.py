"""The language models of the library, at a tiny size."""

import jax
import numpy as np

from mslice_jax.models import Decoder, RecurrentLM
from tests.citizens.citizen import (
    Citizen,
    Tree,
    beside,
    cut,
    kernel,
    lead,
    part_of,
    random_tokens,
    vectors,
    within,
)

VOCAB, UNITS = 11, 16
HEADS, KEY_HEADS, HEAD, HIDDEN = 8, 4, 2, 24
ROWS = 4


def narrow_recurrent(gates: int, tied: bool, graded: bool) -> object:
    """The kernel of all gates is their concatenation; tables keep leading rows too."""

    def narrow(variables: Tree, rate: float) -> Tree:
        params, units = variables["params"], lead(UNITS, rate)
        each, rows = beside(*[(UNITS, units)] * gates), lead(ROWS, rate)

        def dense(layer: Tree) -> Tree:
            if not graded:
                return kernel(layer, units, each)
            tables = {k: cut(v, rows, each) for k, v in layer.items() if k != "kernel"}
            return {"kernel": cut(layer["kernel"], units, each), **tables}

        found = {"embed": {"embedding": cut(params["embed"]["embedding"], units)}}
        for name in ("layer0", "layer1"):
            state = params[name]["state"]["gates"]
            found[name] = {
                "input": dense(params[name]["input"]),
                "state": {"gates": dense(state)},
            }
        if graded:
            found["gain"] = cut(params["gain"], rows, units)
        if not tied:
            found["softmax"] = kernel(params["softmax"], units, np.arange(VOCAB))
        return {"params": found}

    return narrow


def recurrent(cell: str, *, tied: bool, graded: bool = False) -> Citizen:
    """Two layers; the dropout between them is off."""

    def build(rate: float) -> RecurrentLM:
        units, rows = part_of(UNITS, rate), part_of(ROWS, rate) if graded else 0
        return RecurrentLM(vocab=VOCAB, units=units, cell=cell, tied=tied, graded=rows)

    reason = "the softmax uses the embedding" if tied else ""
    return Citizen(
        name=f"{'graded_' if graded else ''}{cell}_lm",
        model=build(1.0),
        inputs=(random_tokens(2, 5, below=VOCAB),),
        by_hand=build,
        narrow_by_hand=narrow_recurrent({"lstm": 4, "gru": 3}[cell], tied, graded),
        not_maskable="gains and biases are sums of rows" if graded else reason,
    )


def narrow_decoder(variables: Tree, rate: float) -> Tree:
    """Groups of heads are the units of attention; the head size is fixed."""
    params, units, hidden = variables["params"], lead(UNITS, rate), lead(HIDDEN, rate)
    each = HEADS // KEY_HEADS * HEAD
    queries = within(lead(KEY_HEADS, rate), each, np.arange(each))
    keys = within(lead(KEY_HEADS, rate), HEAD, np.arange(HEAD))
    axes = {"query": (units, queries), "key": (units, keys), "value": (units, keys)}
    axes |= {"out": (queries, units), "gate": (units, hidden), "up": (units, hidden)}
    axes |= {"down": (hidden, units)}

    def layer(whole: Tree) -> Tree:
        found = {name: kernel(whole[name], *kept) for name, kept in axes.items()}
        for name in ("norm_attention", "norm_mlp"):
            found[name] = vectors(whole[name], units)
        return found

    return {
        "params": {
            "embed": {"embedding": cut(params["embed"]["embedding"], units)},
            "norm": vectors(params["norm"], units),
            **{name: layer(params[name]) for name in ("layer0", "layer1")},
        }
    }


def decoder() -> Citizen:
    """Two layers, one after the other."""

    def build(rate: float) -> Decoder:
        kv = part_of(KEY_HEADS, rate)
        return Decoder(
            vocab=VOCAB,
            units=part_of(UNITS, rate),
            layers=2,
            heads=kv * (HEADS // KEY_HEADS),
            kv_heads=kv,
            head_size=HEAD,
            hidden=part_of(HIDDEN, rate),
            max_length=8,
        )

    return Citizen(
        name="decoder_lm",
        model=build(1.0),
        inputs=(random_tokens(2, 6, below=VOCAB),),
        by_hand=build,
        narrow_by_hand=narrow_decoder,
        not_maskable="RMS norm takes a mean over the stream",
    )


def init(model: RecurrentLM | Decoder, tokens: jax.Array, **call: bool) -> Tree:
    """Variables from one compiled program."""
    start = jax.jit(model.init, static_argnames=tuple(call))
    return start(jax.random.key(0), tokens, **call)
