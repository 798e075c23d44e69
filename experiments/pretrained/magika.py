"""Magika: what type a file is of, by its first and last 1,024 bytes (Apache-2.0).

`pip install magika onnx` brings the network with its weights, an ONNX file that its
authors exported from Flax; this is the same network in Flax Linen. Every byte becomes
64 numbers, four bytes one position; a convolution over five positions, its maximum over
all positions, and a dense layer to 214 types.
"""

import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .files import Files
from .subject import Subject, split

BYTES = 1024  # taken from the beginning of a file, and as many from its end
BLOCK = 4096  # in which they are looked for, behind or before white space
PADDING = 256  # the token where a file is too short


class Magika(nn.Module):
    """Tokens (b, 2048), 0 to 256, to logits (b, types)."""

    embed: int = 64
    channels: int = 512
    types: int = 214

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Runs the network."""
        x = jax.nn.one_hot(tokens, PADDING + 1)
        x = nn.gelu(nn.Dense(self.embed, name="embed")(x))
        x = x.reshape(len(x), -1, 4 * self.embed)
        # Normalized over the positions, with a scale for each of them.
        x = nn.LayerNorm(
            epsilon=1e-6, reduction_axes=1, feature_axes=1, name="positions"
        )(x)
        x = nn.gelu(nn.Conv(self.channels, (5,), padding="VALID", name="conv")(x))
        x = nn.LayerNorm(epsilon=1e-6, name="features")(x.max(1))
        return nn.Dense(self.types, name="logits")(x)


@dataclasses.dataclass(frozen=True)
class Original:
    """What the package brings.

    Attributes:
      variables: of `Magika`.
      types: the names of the 214 types, in the order of the logits.
      by_extension: the type of an extension, where only one type has it.
      onnx: the path of the file.
    """

    variables: Any
    types: tuple[str, ...]
    by_extension: dict[str, str]
    onnx: Path


def original() -> Original:
    """Reads the network of the package that is installed.

    Raises:
      ModuleNotFoundError: if magika or onnx is missing, with the command to get them.
      ValueError: if the file is of another network.
    """
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None or importlib.util.find_spec("onnx") is None:
        raise ModuleNotFoundError(
            "this network comes with two packages: pip install 'mslice_jax[magika]'."
        )
    package = Path(spec.origin).parent
    folder = package / "models" / "standard_v3_3"
    kinds = json.loads((package / "config" / "content_types_kb.min.json").read_text())
    types = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    having: dict[str, list[str]] = {}
    for name in types:
        for extension in kinds[name]["extensions"]:
            having.setdefault(extension, []).append(name)
    return Original(
        weights(folder / "model.onnx"),
        tuple(types),
        {extension: names[0] for extension, names in having.items() if len(names) == 1},
        folder / "model.onnx",
    )


def weights(path: Path) -> Any:
    """The variables of `Magika` from its ONNX file."""
    onnx = importlib.import_module("onnx")  # an optional package
    graph = onnx.load(path).graph
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    made = {node.output[0]: node for node in graph.node}

    def operand(output: str, shape: tuple[int, ...]) -> np.ndarray:
        """The constant of this shape that an operation takes."""
        ends = [name for name in made if name.endswith(output)]
        names = made[ends[0]].input if len(ends) == 1 else ()
        found = [arrays[n] for n in names if n in arrays and arrays[n].size > 1]
        if len(found) != 1 or found[0].size != np.prod(shape):
            raise ValueError(
                "expected the ONNX file of magika's standard_v3_3, with weights of "
                f"shape {shape} at {output!r}; got {[x.shape for x in found]} in "
                f"{path}."
            )
        return found[0].reshape(shape)

    positions, channels, types = 512, 512, 214
    kernel = operand("Conv_0/Conv2D:0", (channels, 256, 5))
    tree = {
        "embed": {
            "kernel": operand("Dense_0/einsum/Einsum:0", (257, 64)),
            "bias": operand("Dense_0/AddV2:0", (64,)),
        },
        "positions": {
            "scale": operand("LayerNorm_0/Mul:0", (positions,)),
            "bias": operand("LayerNorm_0/AddV2_1:0", (positions,)),
        },
        "conv": {
            "kernel": kernel.transpose(2, 1, 0),
            "bias": operand("Conv_0/AddV2:0", (channels,)),
        },
        "features": {
            "scale": operand("LayerNorm_1/Mul:0", (channels,)),
            "bias": operand("LayerNorm_1/AddV2_1:0", (channels,)),
        },
        "logits": {
            "kernel": operand("Dense_1/MatMul:0", (channels, types)),
            "bias": operand("Dense_1/AddV2:0", (types,)),
        },
    }
    return {"params": jax.tree.map(jnp.asarray, tree)}


def tokens(first: bytes, last: bytes) -> np.ndarray:
    """What the network takes of a file: (2048,), int32.

    Args:
      first: up to `BLOCK` bytes from the beginning.
      last: up to `BLOCK` bytes to the end.
    """
    found = np.full(2 * BYTES, PADDING, np.int32)
    begin = np.frombuffer(first.lstrip()[:BYTES], np.uint8)
    end = np.frombuffer(last.rstrip()[-BYTES:], np.uint8)
    found[: len(begin)] = begin
    found[2 * BYTES - len(end) :] = end
    return found


def read(path: Path) -> np.ndarray | None:
    """The tokens of a file; None if it is too short for the network to say anything.

    Raises:
      OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        first = file.read(BLOCK)
        size = file.seek(0, 2)
        file.seek(max(0, size - BLOCK))
        found = tokens(first, file.read(BLOCK))
    return None if found[7] == PADDING else found


def subject(found: Files, known: Original, *, held_out: int, seed: int) -> Subject:
    """The network on files."""
    kinds = len(np.unique(found.labels))
    return Subject(
        name="magika",
        model=Magika(),
        variables=known.variables,
        notes=(
            f"{len(found.labels):,} different files of {kinds} types; "
            f"{found.unreadable} could not be read, and were left out.",
        ),
        examples=split(found.inputs, found.labels, held_out=held_out, seed=seed),
    )
