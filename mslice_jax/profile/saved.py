"""A profile as a file: JSON with a version, written at once or not at all."""

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.layers import Layer
from ..core.rates import check_rate, rate_key
from ..storage.archive import StorageError, check_free, local_path
from .record import Profile, RateProfile

_FORMAT = "mslice_jax.profile"
_VERSION = 1


def save(profile: Profile, path: Any, *, overwrite: bool = False) -> None:
    """Writes a profile as JSON, which `load` reads back as it was.

    What is unknown (NaN) is null. The file appears under its name once it is complete.

    Args:
      profile: from `profile`.
      path: of the file; its folder is made if absent.
      overwrite: whether a file that is there is replaced.

    Raises:
      FileExistsError: if there is one, or a folder.
      StorageError: if the file cannot be written.
    """
    where = local_path(path, "save")
    check_free(where, overwrite=overwrite)
    data = {
        "format": _FORMAT,
        "version": _VERSION,
        "device": profile.device,
        "platform": profile.platform,
        "inputs": list(profile.inputs),
        "batch": profile.batch,
        "repeats": profile.repeats,
        "jax": profile.jax,
        "rates": {rate_key(r): _plain(cost) for r, cost in profile.items()},
    }
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    temporary = where.with_name(f".{where.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, where)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        what = error.strerror or str(error)
        raise StorageError(
            f"cannot write {where}: {what}. Choose another path."
        ) from error


def load(path: Any) -> Profile:
    """Reads a profile that `save` wrote.

    Args:
      path: of the file.

    Raises:
      StorageError: for a file that is absent, damaged, no profile, or of a later
        version; the message says which.
    """
    where = local_path(path, "load")
    try:
        data = json.loads(where.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {where}: {error.strerror or error}.") from None
    except ValueError:
        raise _damaged(where, "it is not JSON") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise StorageError(
            f"{where} is no file of mslice_jax.profile.save: expected "
            f'"format": "{_FORMAT}". Measure one with mslice_jax.profile.profile.'
        )
    if data.get("version") != _VERSION:
        raise StorageError(
            f"{where} is a profile of version {data.get('version')!r}; this version of "
            f"mslice_jax reads {_VERSION}. Update it, or measure again."
        )
    try:
        return _profile(data)
    except (KeyError, TypeError, ValueError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _damaged(where, text) from None


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(
        f"{path} is damaged ({what}). Copy it again, or measure the profile again."
    )


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON has them."""
    if isinstance(value, (RateProfile, Layer)):
        fields = dataclasses.fields(value)
        return {f.name: _plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # A free size, of a call with symbolic shapes, is known by its name.
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def _profile(data: Mapping[str, Any]) -> Profile:
    costs = {}
    for key, cost in _of(dict, data, "rates").items():
        costs[check_rate(float(key))] = _rate_profile(cost)
    if not costs:
        raise ValueError("it has no rates")
    inputs = _of(list, data, "inputs")
    batch = data["batch"]
    return Profile(
        costs=costs,
        device=_of(str, data, "device"),
        platform=_of(str, data, "platform"),
        inputs=tuple(map(str, inputs)),
        batch=None if batch is None else _count(data, "batch"),
        repeats=_count(data, "repeats"),
        jax=_of(str, data, "jax"),
    )


def _rate_profile(data: Any) -> RateProfile:
    layers = tuple(map(_layer, _of(list, data, "layers")))
    return RateProfile(
        parameters=_count(data, "parameters"),
        flops=_number(data, "flops"),
        latency_ms=_number(data, "latency_ms"),
        contraction_flops=_number(data, "contraction_flops"),
        xla_flops=_number(data, "xla_flops"),
        flops_differ=_of(str, data, "flops_differ"),
        latency_p99_ms=_number(data, "latency_p99_ms"),
        weight_bytes=_count(data, "weight_bytes"),
        temporary_bytes=_number(data, "temporary_bytes"),
        activation_bytes=_count(data, "activation_bytes"),
        layers=layers,
    )


def _layer(data: Any) -> Layer:
    shape = data["shape"]
    return Layer(
        name=_of(str, data, "name"),
        shape=None if shape is None else tuple(_of(list, data, "shape")),
        parameters=_count(data, "parameters"),
        flops=_number(data, "flops"),
        activation_bytes=_count(data, "activation_bytes"),
    )


def _of(kind: Any, data: Any, key: str) -> Any:
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}")
    return value


def _count(data: Any, key: str) -> int:
    value = _of(int, data, key)
    if value < 0:
        raise ValueError(f"{key} is {value!r}")
    return value


def _number(data: Any, key: str) -> float:
    """A number of at least 0; null is one that is unknown."""
    if data[key] is None:
        return math.nan
    value = float(_of((int, float), data, key))
    if not 0 <= value < math.inf:
        raise ValueError(f"{key} is {value!r}")
    return value
