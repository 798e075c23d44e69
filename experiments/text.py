"""Recipes for text: words or characters, carried states, perplexities."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.plots import plot_perplexity_over_epochs, plot_perplexity_vs_flops
from mslice_jax.profile import RateProfile
from mslice_jax.train import Batch, Task, evaluate_task, language_model

from .kind import Pace, initialize
from .measure import PERPLEXITY, Numbers, over_epochs
from .optimizers import USUAL
from .predictions import Predictions, predict_on
from .settings import Float, Int, Optimizer, Place, Training

TEXT = Path(__file__).parent / "texts" / "romeo_and_juliet.txt"
VOCABULARY = "vocabulary.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(Training):
    """Flags of a recipe for text."""

    model: Literal["lstm", "gru", "decoder"] = "lstm"
    """Two recurrent layers whose state is carried from batch to batch, or a decoder
    transformer."""
    text: Place = None
    """A file in UTF-8, whose last tenth is held out, or a folder with files for train,
    valid and test, such as WikiText-2; a play of Shakespeare's if not given."""
    tokens: Literal["characters", "words", "spaced"] | None = None
    """Tokens are characters, words and marks, or the strings between spaces; characters
    of a file and spaced of a folder if not given."""
    vocabulary: Int = None
    """Number of the most frequent tokens, with <unk>, in the vocabulary; all tokens if
    not given."""
    held_out: Literal["valid", "test"] = "valid"
    """The evaluated part of a folder."""
    length: Int = None
    """Tokens in a row of a batch, which gradients run through; the longest text of a
    decoder."""
    units: Int = None
    """Size of the embedding and of every layer."""
    layers: Int = None
    """Number of layers."""
    heads: Int = None
    """Heads of a decoder's queries."""
    kv_heads: Int = None
    """Heads of a decoder's keys and values, the units of its attention."""
    dropout: Float = None
    """Share of the outputs of layers that is dropped in training."""
    tied: bool = True
    """Let the softmax use the weights of the embedding."""
    graded: Int = None
    """Parts of a recurrent network's width, each of which adds to gains and biases:
    then every rate that is so many parts has its own, and products begin scaled by
    1 / rate. 8 suits the default rates; 0 is without, the default for words."""
    scan: bool = False
    """Let a decoder's layers run in one loop, which compiles sooner."""
    optimizer: Optimizer = "adamw"
    """adamw, adam, lamb and lion are Optax's with their default settings; sgd has
    Nesterov momentum of 0.9."""
    cosine: bool = True
    """Let the learning rate decay to zero along a cosine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDefaults:
    """Defaults of the flags that depend on model and text.

    Attributes:
      units, layers, heads, kv_heads, dropout: of the network.
      graded: parts of the width with gains and biases of their own.
      length, batch_size: columns and rows of a batch.
      epochs, lr, clip, warmup_epochs: of the training; `lr` is meant for adamw.
    """

    units: int
    layers: int = 2
    heads: int | None = None
    kv_heads: int | None = None
    dropout: float = 0.2
    graded: int = 0
    length: int = 64
    batch_size: int = 16
    epochs: int = 8
    lr: float = 3e-3
    clip: float = 1.0
    warmup_epochs: int = 0

    def learning_rate(self, optimizer: str) -> float:
        """Default of --lr."""
        if optimizer == "adamw":
            return self.lr
        usual = USUAL[optimizer].lr
        return 0.5 if usual is None else usual


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts and language models.

    Attributes:
      small: defaults of each model for the text that ships with the recipe.
      usual: the same for any other.
    """

    small: Mapping[str, TextDefaults]
    usual: Mapping[str, TextDefaults]

    settings = TextSettings
    quantity = PERPLEXITY
    pictures = ("perplexity_vs_flops.png", "perplexity_over_epochs.png")

    def defaults(self, recipe: Any, settings: TextSettings) -> TextDefaults:
        """The defaults by model and text."""
        del recipe
        return (self.small if settings.text is None else self.usual)[settings.model]

    def check(self, recipe: Any, settings: TextSettings) -> None:
        """Sizes of the network, and flags of another model."""
        if settings.model != "decoder":
            for name in ("heads", "kv_heads", "scan"):
                if getattr(settings, name):
                    raise ValueError(
                        f"--{name.replace('_', '-')} has no effect: it is for --model "
                        f"decoder, this is {settings.model}. Leave it out."
                    )
            if settings.accumulate > 1:
                raise ValueError(
                    "--accumulate divides a batch, and the states that --model "
                    f"{settings.model} carries from batch to batch cannot be divided "
                    "with it. Choose decoder, or a smaller --batch-size."
                )
        elif settings.graded:
            raise ValueError(
                "--graded has no effect: it is for --model lstm and gru, whose "
                "products no norm follows; this is decoder. Leave it out."
            )
        recipe.model(settings, vocab=2)

    def load(self, settings: TextSettings, *, run: Path | None = None) -> data.Text:
        """The text; with the vocabulary of a run that continues."""
        vocabulary: Any = settings.vocabulary
        if run is not None:
            vocabulary = _vocabulary(run / VOCABULARY)
        return data.read_text(
            TEXT if settings.text is None else settings.text,
            kind=settings.tokens,
            vocabulary=vocabulary,
            held_out=settings.held_out,
        )

    def steps_per_epoch(self, settings: TextSettings, dataset: data.Text) -> int:
        """Batches in the text."""
        rows, columns = _shape(settings)
        return data.text_steps(len(dataset.train), rows, columns)

    def classes(self, dataset: data.Text) -> int:
        """Tokens of the vocabulary."""
        return len(dataset.vocabulary)

    def network(
        self, recipe: Any, settings: TextSettings, dataset: data.Text
    ) -> tuple[ms.Sliceable, str]:
        """The initial network, with hidden states of zeros, and its name."""
        model = recipe.model(settings, vocab=len(dataset.vocabulary))
        key, _ = jax.random.split(jax.random.key(settings.seed))
        tokens = jnp.zeros(_shape(settings), jnp.int32)
        variables = initialize(model, key, tokens)
        name = f"{settings.model} of {settings.layers} x {settings.units}"
        return self._upgraded(model, settings, variables), name

    def _upgraded(
        self, model: Any, settings: TextSettings, variables: Any
    ) -> ms.Sliceable:
        carried = [name for name in variables if name != "params"]
        call: dict[str, Any] = {"mutable": carried} if carried else {}
        return ms.upgrade(
            model,
            variables,
            jax.ShapeDtypeStruct(_shape(settings), jnp.int32),
            rates=settings.rates,
            groups=settings.groups,
            shards=cast(int, settings.shards),
            **call,
        )

    def step(self, settings: TextSettings, dataset: data.Text) -> dict[str, Any]:
        """The task: loss and metrics of tokens."""
        del dataset
        return {"task": _task(settings.label_smoothing)}

    def carry(self, settings: TextSettings) -> tuple[str, ...]:
        """The hidden states of recurrent networks."""
        return () if settings.model == "decoder" else ("hidden",)

    def batches(
        self,
        settings: TextSettings,
        dataset: data.Text,
        *,
        start: int,
        host: tuple[int, int],
    ) -> Iterator[Batch]:
        """Tokens, and the next ones."""
        rows, columns = _shape(settings)
        return data.text_batches(dataset.train, rows, columns, start=start, host=host)

    def blank(self, settings: TextSettings, dataset: data.Text, size: int) -> Batch:
        """The unknown token everywhere."""
        del dataset
        tokens = np.zeros((size, cast(int, settings.length)), np.int32)
        return tokens, tokens

    def pace(self, settings: TextSettings) -> Pace:
        """Tokens per second."""
        return Pace(what="tokens", each=cast(int, settings.length))

    def measurement(
        self, settings: TextSettings, dataset: data.Text
    ) -> Callable[[ms.Sliceable], Numbers]:
        """Perplexity of the held-out text; a decoder sees half a row of the past."""
        batches = self._held_out(settings, dataset)
        evaluate = evaluate_task(batches, _task(), carry=self.carry(settings))

        def measure(net: ms.Sliceable) -> Numbers:
            found = evaluate(net)
            return Numbers({}, {rate: values["loss"] for rate, values in found.items()})

        return measure

    def further(
        self, settings: Any, dataset: Any
    ) -> Mapping[str, Callable[[ms.Sliceable], Numbers]]:
        """None."""
        del settings, dataset
        return {}

    def predictions(
        self, settings: TextSettings, dataset: data.Text
    ) -> Callable[[ms.Sliceable], Predictions]:
        """The likeliest next token at every place of the held-out text."""
        carry = self.carry(settings)
        return predict_on(self._held_out(settings, dataset), carry=carry)

    def _held_out(self, settings: TextSettings, dataset: data.Text) -> Any:
        """() -> batches of tokens, next ones and weights."""
        rows, columns = _shape(settings)
        return functools.partial(
            data.held_out_batches,
            dataset.held_out,
            rows,
            columns,
            overlap=0 if self.carry(settings) else columns // 2,
        )

    def keep(self, dataset: data.Text, workdir: Path) -> None:
        """The vocabulary."""
        values = dataclasses.asdict(dataset.vocabulary)
        (workdir / VOCABULARY).write_text(json.dumps(values), encoding="utf-8")

    def shipped(
        self, recipe: Any, settings: TextSettings, dataset: data.Text, net: ms.Sliceable
    ) -> ms.Sliceable:
        """Without the states of the last batch: it takes any number of texts."""
        if not self.carry(settings):
            return net
        model = self._shipped_model(recipe, settings, dataset.vocabulary)
        row = jnp.zeros((1, cast(int, settings.length)), jnp.int32)
        types = jax.eval_shape(model.init, jax.random.key(0), row)
        whole = self._upgraded(model, settings, types)
        # A run whose widest rate is narrow is read back at that rate.
        part = whole if net.rate == 1.0 else ms.extract(whole, net.rate)
        return part.replace({"params": net.variables["params"]})

    def model(self, recipe: Any, settings: TextSettings, workdir: Path) -> nn.Module:
        """With the vocabulary of the run."""
        return self._shipped_model(recipe, settings, _vocabulary(workdir / VOCABULARY))

    def _shipped_model(
        self, recipe: Any, settings: TextSettings, vocabulary: data.Vocabulary
    ) -> nn.Module:
        carry = {"carry": False} if self.carry(settings) else {}
        return recipe.model(settings, vocab=len(vocabulary), **carry)

    def example(self, settings: TextSettings, dataset: data.Text) -> np.ndarray:
        """One row of text."""
        del dataset
        return np.zeros((1, cast(int, settings.length)), np.int32)

    def draw(
        self,
        workdir: Path,
        numbers: Numbers,
        profiles: Mapping[float, RateProfile],
        title: str,
    ) -> None:
        """Perplexity against FLOPs, and over the epochs."""
        against, over = (workdir / name for name in self.pictures)
        flops = {rate: cost.flops for rate, cost in profiles.items()}
        if not any(map(math.isnan, flops.values())):
            plot_perplexity_vs_flops(against, numbers.perplexity, flops, title=title)
        each = over_epochs(workdir / "metrics.jsonl", "perplexity")
        plot_perplexity_over_epochs(over, each, title=title)


def _task(smoothing: float = 0.0) -> Task:
    """Tokens, without their accuracy.

    On CPU finding the likeliest of 8,000 words takes as long as the loss and its
    gradient.
    """
    return dataclasses.replace(language_model(smoothing=smoothing), metrics={})


def _shape(settings: TextSettings) -> tuple[int, int]:
    """Rows and columns of a batch."""
    return cast(int, settings.batch_size), cast(int, settings.length)


def _vocabulary(file: Path) -> data.Vocabulary:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return data.Vocabulary(tuple(values["entries"]), values["kind"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read the vocabulary of the run, {file}: {error}."
        ) from error
