"""Language models: their parameters, carried state, the cache, generation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.models import Decoder, RecurrentLM, generate, gru_lm, lstm_lm
from mslice_jax.nn import GRUCell, LSTMCell
from tests.citizens.citizen import random_tokens, shaken
from tests.citizens.language import init

RATES = (0.25, 0.5, 0.75, 1.0)
TOKENS = random_tokens(2, 6, below=11)
TINY = {"vocab": 11, "units": 16, "layers": 2, "heads": 8, "kv_heads": 4}
TINY |= {"head_size": 2, "hidden": 24, "max_length": 8}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def recurrent_count(gates, biases, u, layers, vocab, tied):
    """Each gate: a matrix for the input, one for the state, and its biases."""
    layer = gates * (u * u + u * u + biases * u)
    return vocab * u + layers * layer + (0 if tied else u * vocab + vocab)


def decoder_count(u, layers, heads, kv, size, hidden, vocab, tied):
    attention = u * heads * size + 2 * u * kv * size + heads * size * u
    layer = attention + 3 * u * hidden + 2 * u
    return vocab * u + layers * layer + u + (0 if tied else u * vocab + vocab)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lstm_lm(10_000), recurrent_count(4, 1, 640, 2, 10_000, False)),
        (lstm_lm(50, units=8, layers=3, tied=True), 50 * 8 + 3 * 4 * (128 + 8)),
        (gru_lm(10_000), recurrent_count(3, 2, 640, 2, 10_000, False)),
        (Decoder(vocab=8_000), decoder_count(256, 4, 8, 4, 32, 688, 8_000, True)),
        (Decoder(**TINY, tied=False), decoder_count(16, 2, 8, 4, 2, 24, 11, False)),
        (Decoder(**TINY, scan=True), decoder_count(16, 2, 8, 4, 2, 24, 11, True)),
    ],
    ids=str,
)
def test_parameters_are_those_counted_by_hand(model, expected):
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 4), int))
    assert list(made) == ["params"]
    assert count(made) == expected


# -- carried state, against layers with a static rate


@functools.cache
def carrying(cell):
    model = RecurrentLM(vocab=11, units=16, cell=cell, carry=True)
    variables = jax.tree.map(jnp.asarray, shaken(init(model, TOKENS)))
    hidden = jax.tree.map(jnp.zeros_like, variables["hidden"])
    variables = {**variables, "hidden": hidden}
    return ms.upgrade(model, variables, TOKENS, rates=RATES, mutable=["hidden"])


def cells(cell, layer):
    """The parameters of a layer in the form of a cell of `mslice_jax.nn`."""
    names = "ifgo" if cell == "lstm" else "rzn"
    fused = (layer["input"], layer["state"]["gates"])
    found = {}
    for prefix, dense in zip("ih", fused, strict=True):
        for at, name in enumerate(names):
            part = slice(16 * at, 16 * (at + 1))
            found[prefix + name] = {k: v[..., part] for k, v in dense.items()}
    if cell == "lstm":  # its bias belongs to the state
        for name in names:
            found["h" + name]["bias"] = found["i" + name].pop("bias")
    else:
        for name in "rz":
            found["i" + name]["bias"] += found["h" + name].pop("bias")
    return found


def by_cells(cell, params, tokens, rate):
    """Logits token by token, through the cells that tests compare slicing with."""
    kind = {"lstm": LSTMCell, "gru": GRUCell}[cell](16, in_features=16)
    width, batch = int(16 * rate), tokens.shape[0]
    zeros = jnp.zeros((batch, width))
    states = [(zeros, zeros) if cell == "lstm" else zeros for _ in range(2)]
    step = jax.jit(lambda weights, state, x: kind.apply(weights, state, x, rate))
    rows = []
    for t in range(tokens.shape[1]):
        x = params["embed"]["embedding"][tokens[:, t], :width]
        for at in range(2):
            weights = {"params": cells(cell, params[f"layer{at}"])}
            states[at], x = step(weights, states[at], x)
        softmax = params["softmax"]
        rows.append(x @ softmax["kernel"][:width] + softmax["bias"][None])
    return jnp.stack(rows, axis=1)


@pytest.mark.parametrize(
    ("cell", "rate"), [*(("lstm", rate) for rate in RATES), ("gru", 0.25), ("gru", 1.0)]
)
def test_a_carried_state_equals_one_text(cell, rate):
    net = carrying(cell)
    expected = by_cells(cell, net.variables["params"], TOKENS, rate)
    found = []
    for part in (TOKENS[:, :3], TOKENS[:, 3:]):
        y, state = net(rate, part, mutable=["hidden"])
        net = net.replace({**net.variables, **state})
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, atol=1e-5)


def test_a_state_of_another_batch_is_refused():
    model = RecurrentLM(vocab=11, units=16, carry=True)
    variables = init(model, TOKENS)
    with pytest.raises(ValueError, match="expected 2 texts, .* hidden state has; got"):
        model.apply(variables, TOKENS[:1])
    assert not any(map(np.any, jax.tree.leaves(variables["hidden"])))


# -- the cache


@functools.cache
def decoders(scan):
    """A network, and a decoding one with the same parameters."""
    model = Decoder(**TINY, scan=scan)
    made = init(model, TOKENS, decode=True)
    variables = {**made, "params": shaken({"params": made["params"]})["params"]}
    call = {"decode": True, "mutable": ["cache"]}
    decoding = ms.upgrade(model, variables, TOKENS, rates=RATES, **call)
    whole = ms.upgrade(model, {"params": variables["params"]}, TOKENS, rates=RATES)
    return whole, decoding


def decode(net, rate, tokens):
    y, state = net(rate, tokens, decode=True, mutable=["cache"])
    return y, net.replace({**net.variables, **state})


@pytest.mark.parametrize(
    ("scan", "rate"), [*((False, rate) for rate in RATES), (True, 0.5)]
)
def test_decoding_with_a_cache_equals_the_whole_text(scan, rate):
    whole, net = decoders(scan)
    net, found = ms.extract(net, rate), []
    for part in (TOKENS[:, :4], TOKENS[:, 4:5], TOKENS[:, 5:]):
        y, net = decode(net, rate, part)
        found.append(y)
    expected = ms.slice_apply(whole, TOKENS, rate)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, atol=1e-5)
    kept = net.variables["cache"]["layers" if scan else "layer1"]["keys"]
    assert kept.shape[-3:] == (8, int(4 * rate), 2)


def test_attention_is_causal():
    whole, _ = decoders(False)
    changed = np.array(TOKENS)
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = (ms.slice_apply(whole, x, 1.0) for x in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.abs(before[:, 4] - after[:, 4]).max(axis=-1) > 1e-3)


def test_a_position_is_relative():
    # A repeated token: queries and keys rotate together, so each position sees the same
    # keys at other distances, and the mean of equal values is the value.
    whole, _ = decoders(False)
    y = ms.slice_apply(whole, np.full((1, 6), 3, np.int32), 1.0)
    np.testing.assert_allclose(y, np.broadcast_to(y[:, :1], y.shape), atol=1e-5)


def test_positions_matter():
    whole, _ = decoders(False)
    turned = TOKENS[:, [1, 0, 2, 3, 4, 5]]
    last = [ms.slice_apply(whole, x, 1.0)[:, -1] for x in (TOKENS, turned)]
    assert np.abs(last[0] - last[1]).max() > 1e-3


@pytest.mark.parametrize("rate", (0.5, 1.0))
def test_scanned_layers_equal_unrolled_layers(rate):
    (one, _), (other, _) = decoders(True), decoders(False)
    params = dict(one.variables["params"])
    stack = params.pop("layers")
    for at in range(2):
        params[f"layer{at}"] = jax.tree.map(lambda x, at=at: x[at], stack)
    expected = ms.slice_apply(other.replace({"params": params}), TOKENS, rate)
    np.testing.assert_allclose(
        ms.slice_apply(one, TOKENS, rate), expected, rtol=1e-5, atol=1e-5
    )


# -- what does not fit


def test_a_text_that_is_too_long_is_refused():
    whole, net = decoders(False)
    long = np.zeros((2, 9), np.int32)
    with pytest.raises(ValueError, match="at most max_length=8 tokens, got .* of 9"):
        ms.slice_apply(whole, long, 0.5)
    _, net = decode(net, 1.0, long[:, :6])
    y, _ = decode(net, 1.0, long[:, :3])
    assert np.all(np.isnan(y))  # the cache ends within this call


@pytest.mark.parametrize("token", [-1, 11])
@pytest.mark.parametrize("model", [Decoder(**TINY), lstm_lm(11, units=8)], ids=str)
def test_a_token_out_of_range_is_refused(model, token):
    tokens = jnp.array([[0, token]])
    with pytest.raises(ValueError, match=f"tokens from 0 to 10, .* got {token}"):
        model.init(jax.random.key(0), tokens)


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_out_of_range_is_refused_at_every_rate(token):
    """Outside of jit, before the program runs, which would not see it."""
    tokens = np.array([[0, token, 1]], np.int32)
    whole, net = decoders(False)
    calls = (
        lambda: ms.slice_apply(whole, tokens, 0.5),
        lambda: whole(1.0, tokens=jnp.asarray(tokens)),
        lambda: ms.slice_apply(ms.extract(whole, 0.5), tokens, 0.5),
        lambda: whole.module.apply(whole.variables, tokens, rate=0.5),
        lambda: decode(net, 0.5, np.repeat(tokens, 2, axis=0)),
        lambda: ms.slice_apply(carrying("lstm"), np.repeat(tokens, 2, axis=0), 0.5),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"tokens from 0 to 10, .* got {token}"):
            call()


@pytest.mark.parametrize("tokens", [np.zeros(3, int), np.zeros((1, 3))])
def test_bad_batches_of_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=r"of shape \(batch, length\), whole numbers"):
        lstm_lm(11, units=8).init(jax.random.key(0), jnp.asarray(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads that divides heads=8, got 3"),
        ({"head_size": None, "units": 20}, "heads that divide units=20, got 8"),
        ({"head_size": 3}, "heads of an even size, got 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Decoder(**{**TINY, **change})


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match='"lstm" or "gru", got \'rnn\''):
        RecurrentLM(vocab=3, cell="rnn")  # pyright: ignore[reportArgumentType]


# -- generation


def test_the_likeliest_continuation_at_a_narrow_rate():
    whole, net = decoders(False)
    small, prompt = ms.extract(net, 0.5), TOKENS[:, :3]

    def call(cache, tokens):
        y, new = decode(small.replace({**small.variables, "cache": cache}), 0.5, tokens)
        return y, new.variables["cache"]

    found = generate(call, small.variables["cache"], prompt, 4, max_length=8)
    text = prompt  # the slow way: the whole text again for every token
    for _ in range(4):
        y = ms.slice_apply(whole, text, 0.5)[:, -1]
        text = np.concatenate([text, np.argmax(y, -1)[:, None]], axis=1)
    np.testing.assert_array_equal(found, text[:, 3:])


def test_drawn_tokens_have_the_probabilities_of_the_softmax():
    odds = jnp.log(jnp.array([0.5, 0.25, 0.25, 1e-9]))

    def call(state, tokens):
        return jnp.broadcast_to(odds, (*tokens.shape, 4)), state

    prompt = jnp.zeros((64, 1), int)
    drawn = generate(call, None, prompt, 64, temperature=1.0, key=jax.random.key(0))
    share = np.bincount(np.ravel(drawn), minlength=4) / drawn.size
    np.testing.assert_allclose(share, np.exp(odds), atol=0.03)  # four deviations
    drawn = generate(call, None, prompt, 64, temperature=0.5, key=jax.random.key(0))
    share = np.bincount(np.ravel(drawn), minlength=4) / drawn.size
    np.testing.assert_allclose(share, [2 / 3, 1 / 6, 1 / 6, 0], atol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "at least 1 token"),
        ({"temperature": 1.0}, "together with a key; got 1.0 and no key"),
        ({"prompt": jnp.zeros((1, 0), int)}, "at least one token"),
        ({"prompt": jnp.array([[0, 5]])}, "tokens from 0 to 4, .* got 5"),
        ({"prompt": jnp.array([[-2, 0]])}, "tokens from 0 to 4, .* got -2"),
        ({"count": 7}, "need a model of max_length 9, and this one has 8"),
    ],
)
def test_bad_requests_of_generation_are_refused(change, message):
    given = {"prompt": jnp.zeros((1, 3), int), "count": 2, "max_length": 8, **change}
    with pytest.raises(ValueError, match=message):
        generate(lambda _, tokens: (jnp.zeros((*tokens.shape, 5)), 0), 0, **given)
