"""Random numbers on the host: a function of seed, stream and place."""

import jax
import numpy as np

from mslice_jax.core.streams import Stream, step_keys, stream_keys, uniforms, words


def test_uniform_numbers_are_the_first_53_bits_of_words():
    raw = words(3, Stream.CROPS, 5, 7, count=4)
    found = uniforms(3, Stream.CROPS, 5, 7, count=4)
    assert raw.dtype == np.uint64
    assert found.tolist() == [(int(word) >> 11) / 2**53 for word in raw]
    assert len({round(x, 3) for x in found}) == 4


def test_every_place_has_its_own():
    places = [(0,), (1,), (0, 1), (1, 0)]
    found = {int(words(0, Stream.ORDER, *place, count=1)[0]) for place in places}
    found |= {int(words(seed, Stream.RATES, 0, count=1)[0]) for seed in (0, 1)}
    assert len(found) == 6


def test_keys_of_a_step_and_of_streams():
    key = jax.random.key(0)
    folded = jax.random.split(jax.random.fold_in(key, 3))
    assert (jax.random.key_data(jax.numpy.stack(step_keys(key, 3)))
            == jax.random.key_data(folded)).all()  # fmt: skip
    keys = stream_keys(key, ["noise", "dropout", "noise"])
    assert list(keys) == ["dropout", "noise"]
    assert keys["dropout"] is key
    # zlib.crc32(b"noise"), the same everywhere.
    expected = jax.random.fold_in(key, 0xFDA99629)
    assert (jax.random.key_data(keys["noise"]) == jax.random.key_data(expected)).all()
