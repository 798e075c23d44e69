"""Files with a state dict of PyTorch: torch files, safetensors and npz.

Nothing in a file is executed: torch files are read with ``weights_only``, npz without
pickles, and safetensors (whose format is a length, JSON and plain numbers) here.
"""

import json
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np


class WeightsError(ValueError):
    """Weights that cannot be read, or are those of another network.

    Attributes:
      missing: the keys that the network has and the state dict lacks.
      left_over: the keys that the network has no place for.
      misshapen: {key: (expected shape, shape found)}.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        left_over: tuple[str, ...] = (),
        misshapen: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.missing = missing
        self.left_over = left_over
        self.misshapen = dict(misshapen or {})


# What the authors' code, and others, call the state dict in a file with more in it.
_INSIDE = ("model_state", "state_dict", "model_state_dict", "model")

_SAFE_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as NumPy arrays.

    Which of the three kinds it is, the content says and not the name. A file may hold
    the state dict alone, or beside other things as "model_state" (the original's
    checkpoints), "state_dict" or "model". Names lose the prefix "module." that
    DataParallel gives all of them.

    Args:
      path: of the file. A torch file takes PyTorch, the extra "pytorch".

    Raises:
      FileNotFoundError: if there is no file.
      WeightsError: for a file of no such kind, a damaged one, a torch file with more
        than tensors in it (a pickle that would run code never does), or one without
        PyTorch installed.

    Example:
      >>> import tempfile, numpy as np
      >>> from mslice_jax.models.import_torch import read_state_dict
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/w.npz", **{"module.fc.bias": np.zeros(3)})
      ...     read_state_dict(f"{folder}/w.npz")
      {'fc.bias': array([0., 0., 0.])}
    """
    file = Path(path).expanduser()
    with open(file, "rb") as opened:
        start = opened.read(16)
    if start[:2] == b"PK":
        found = _read_zip(file)
    elif _is_safetensors(start):
        found = _read_safetensors(file)
    elif start[:1] == b"\x80":  # a pickle, as PyTorch wrote them until 1.6
        found = _read_torch(file)
    else:
        raise WeightsError(
            f"{file} is no torch file, safetensors or npz. Save the state dict of the "
            "network: torch.save(model.state_dict(), path)."
        )
    return _without_prefix(found)


def _read_zip(file: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(file, error) from error
    if not names or not all(name.endswith(".npy") for name in names):
        return _read_torch(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of zipfile, zlib, tokenize, ...: by what is damaged
        raise _damaged(file, error) from error


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise WeightsError(
            f"{file} is a torch file, and PyTorch is not installed: pip install "
            '"mslice_jax[pytorch]", or save the state dict as safetensors or npz where '
            "it is."
        ) from None
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = _reason(error)
        if "GLOBAL" not in why:
            raise _damaged(file, pickle.UnpicklingError(why)) from error
        raise WeightsError(
            f"{file} was not read: it has more in it than tensors, and what else there "
            f"is would run code ({why[:200]}). Save the state dict "
            "alone: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # many types, by what is damaged
        raise _damaged(file, error) from error
    while isinstance(loaded, Mapping):
        inside = next((loaded[name] for name in _INSIDE if name in loaded), None)
        if not isinstance(inside, Mapping):
            break
        loaded = inside
    if not isinstance(loaded, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        raise WeightsError(
            f"{file} has no state dict in it, a mapping of names to tensors, neither "
            f"by itself nor as {', '.join(_INSIDE)}. Save that of the network: "
            "torch.save(model.state_dict(), path)."
        )
    return {str(name): _as_numpy(tensor) for name, tensor in loaded.items()}


def _reason(error: Exception) -> str:
    """The line of torch's message that says what it met."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    for word in ("GLOBAL", "WeightsUnpickler error"):
        for line in lines:
            if word in line:
                return line.strip("() ")
    return lines[0] if lines else ""


def _as_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy knows no bfloat16
    return tensor.numpy()


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 8 and start[8:9] == b"{"


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    content = np.memmap(file, np.uint8, "r")
    length = int.from_bytes(content[:8].tobytes(), "little")
    try:
        header = json.loads(content[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        data = content[8 + length :]
        return {name: _tensor(data, about) for name, about in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from error


def _tensor(data: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(_SAFE_TYPES[about["dtype"]])
    start, end = about["data_offsets"]
    size = math.prod(about["shape"]) * dtype.itemsize
    if not 0 <= start <= end <= len(data) or end - start != size:
        raise ValueError(f"bytes {start} to {end} for {about['shape']} of {dtype}")
    return np.array(data[start:end]).view(dtype).reshape(about["shape"])


def _damaged(file: Path, error: Exception) -> WeightsError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return WeightsError(f"{file} cannot be read, it may be damaged: {text}")


def _without_prefix(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): x for name, x in state.items()}
    return state
