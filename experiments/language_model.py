"""Train a sliceable language model: LSTM, GRU or decoder, on words or characters.

    python -m experiments.language_model
    python -m experiments.language_model --model decoder
    python -m experiments.language_model --text novel.txt --tokens words
    python -m experiments.language_model --text wikitext-2/ --vocabulary 8000

Without arguments: two LSTM layers of 256 on the characters of *Romeo and Juliet*. That
takes about two minutes on two idle CPU cores, compilation included. The perplexity of
the last tenth is 4.52, 4.71, 5.12 and 5.87 at r = 1, 0.75, 0.5 and 0.25; a smoothed
trigram has 6.88 (``python -m experiments.benchmarks.trigram``).

The hidden state of a recurrent network is carried from batch to batch, each rate its
own, and is part of the run's checkpoints (truncated backpropagation through time). The
rest is as in the other recipes, see `experiments.recipe`; in place of accuracies stand
perplexities, and vocabulary.json says which token has which number. ``python -m
experiments.evaluate runs/language_model`` measures a run again, with ``--text`` on
another text, and with ``--held-out test`` on the other part of a folder.
"""

import sys
from typing import Any

from flax import linen as nn

from mslice_jax.models import Decoder, RecurrentLM

from .recipe import Recipe, main
from .text import TextDefaults, Texts, TextSettings


def build(settings: TextSettings, vocab: int, **attributes: Any) -> nn.Module:
    """The network that resolved flags describe."""
    sizes: dict[str, Any] = {
        "vocab": vocab,
        "units": settings.units,
        "layers": settings.layers,
        "dropout": settings.dropout,
        "tied": settings.tied,
        **attributes,
    }
    if settings.model != "decoder":
        sizes = {"carry": True, "graded": settings.graded, **sizes}
        return RecurrentLM(cell=settings.model, **sizes)
    heads: dict[str, Any] = {"heads": settings.heads, "kv_heads": settings.kv_heads}
    length: Any = settings.length
    return Decoder(max_length=length, scan=settings.scan, **heads, **sizes)


RECURRENT = TextDefaults(units=256, graded=8, lr=3e-3)
WORDS = TextDefaults(units=384, length=35, batch_size=20, epochs=5, lr=2e-3)
DECODER = TextDefaults(units=128, layers=4, heads=8, kv_heads=4, lr=4e-3)

RECIPE = Recipe(
    name="language_model",
    description="Train a sliceable language model on words or characters of a text.",
    model=build,
    kind=Texts(
        small={"lstm": RECURRENT, "gru": RECURRENT, "decoder": DECODER},
        usual={
            "lstm": WORDS,
            "gru": WORDS,
            "decoder": TextDefaults(
                units=256, layers=4, heads=8, kv_heads=4, epochs=5, lr=1e-3
            ),
        },
    ),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
