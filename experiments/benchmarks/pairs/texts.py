"""Language models: LSTM, GRU, and a decoder transformer."""

# The checks of this project do not install PyTorch.
# pyright: reportMissingImports=false

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mslice_jax.models import Decoder, RecurrentLM

from .data import Texts
from .pair import Arrays, Pair, laid_out, named

UNITS, HIDDEN, HEADS, KV_HEADS = 256, 688, 8, 4


def lstm(tiny: bool) -> Pair:
    """Two layers of 256 units."""
    return _recurrent("lstm", nn.LSTM, tiny)


def gru(tiny: bool) -> Pair:
    """Two layers of 256 units."""
    return _recurrent("gru", nn.GRU, tiny)


def decoder(tiny: bool) -> Pair:
    """Four layers of 256 units, 8 heads of queries, 4 of keys and values."""
    texts = Texts(8, 32) if tiny else Texts(128, 2048)
    layers = 1 if tiny else 4
    model = Decoder(
        vocab=texts.vocab, units=UNITS, layers=layers, heads=HEADS, kv_heads=KV_HEADS,
        hidden=HIDDEN,
    )  # fmt: skip
    return Pair(
        model=model,
        twin=lambda rate: _Decoder(texts.vocab, layers, rate),
        tensors=named,
        batch=2 if tiny else 8,
        **texts.settings(),
    )


def _recurrent(cell: Any, kind: Any, tiny: bool) -> Pair:
    texts = Texts(6, 32) if tiny else Texts(128, 2048)
    units = 16 if tiny else UNITS
    return Pair(
        model=RecurrentLM(vocab=texts.vocab, units=units, cell=cell, dropout=0.0),
        twin=lambda rate: _Recurrent(texts.vocab, round(units * rate), kind),
        tensors=_of_layers,
        batch=2 if tiny else 8,
        **texts.settings(),
    )


class _Recurrent(nn.Module):
    def __init__(self, vocab: int, units: int, kind: Any):
        super().__init__()
        self.embed = nn.Embedding(vocab, units)
        self.layers = kind(units, units, num_layers=2, batch_first=True)
        if kind is nn.LSTM:  # ours has one bias
            for layer in range(2):
                bias = getattr(self.layers, f"bias_hh_l{layer}")
                nn.init.zeros_(bias.requires_grad_(False))
        self.softmax = nn.Linear(units, vocab)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, t) -> (b, t, vocab)."""
        return self.softmax(self.layers(self.embed(x))[0])


def _of_layers(variables: Mapping[tuple[str, ...], Any]) -> Arrays:
    """Of layerN: input is weight_ih_lN, and what is multiplied with the state _hh_."""
    arrays = {}
    others = dict(variables)
    for path, x in variables.items():
        found = re.fullmatch(r"layer(\d)", path[1])
        if found:
            which = "ih" if path[2] == "input" else "hh"
            leaf = "bias" if path[-1] == "bias" else "weight"
            arrays[f"layers.{leaf}_{which}_l{found[1]}"] = laid_out(path[-1], x)
            del others[path]
    return arrays | named(others)


class _Decoder(nn.Module):
    def __init__(self, vocab: int, layers: int, rate: float):
        super().__init__()
        units = round(UNITS * rate)
        self.embed = nn.Embedding(vocab, units)
        self.blocks = [f"layer{index}" for index in range(layers)]
        for name in self.blocks:
            self.add_module(name, _Block(rate))
        self.norm = nn.RMSNorm(units, eps=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(b, t) -> (b, t, vocab)."""
        x = self.embed(tokens)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return F.linear(self.norm(x), self.embed.weight)


class _Block(nn.Module):
    def __init__(self, rate: float):
        super().__init__()
        units, hidden = round(UNITS * rate), round(HIDDEN * rate)
        self.size = UNITS // HEADS
        self.heads, self.kv_heads = round(HEADS * rate), round(KV_HEADS * rate)
        self.norm_attention = nn.RMSNorm(units, eps=1e-6)
        self.norm_mlp = nn.RMSNorm(units, eps=1e-6)
        for name, inputs, outputs in (
            ("query", units, self.heads * self.size),
            ("key", units, self.kv_heads * self.size),
            ("value", units, self.kv_heads * self.size),
            ("out", self.heads * self.size, units),
            ("gate", units, hidden),
            ("up", units, hidden),
            ("down", hidden, units),
        ):
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, t, units) -> the same."""
        b, t, _ = x.shape
        y = self.norm_attention(x)
        query, key, value = (
            layer(y).view(b, t, heads, self.size).transpose(1, 2)
            for layer, heads in (
                (self.query, self.heads),
                (self.key, self.kv_heads),
                (self.value, self.kv_heads),
            )
        )
        y = F.scaled_dot_product_attention(
            _turned(query), _turned(key), value, is_causal=True, enable_gqa=True
        )
        x = x + self.out(y.transpose(1, 2).reshape(b, t, -1))
        y = self.norm_mlp(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _turned(x: torch.Tensor) -> torch.Tensor:
    """(b, heads, t, size), turned by angles of the position, as ours."""
    half = x.shape[-1] // 2
    speed = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
