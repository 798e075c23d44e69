"""The Open Inference Protocol, version 2: requests and answers of HTTP, as bytes.

JSON, and the extension for binary tensors: the first `Inference-Header-Content-Length`
bytes of a body are JSON, the tensors follow in its order.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .signature import Tensor
from .tensors import (
    NAMES,
    Rest,
    Unreadable,
    array_of,
    as_flag,
    as_int,
    as_object,
    listed,
    only,
    short,
)

_DAY_US = 24 * 3600 * 10**6


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for, and whether as binary."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Asked:
    """An inference request.

    Attributes:
      id: to be echoed, or None.
      inputs: arrays by name.
      outputs: in the order of the request.
      timeout_s: its own timeout, or None.
      wishes: `min_rate`, `rate`, `priority`, as far as they were given.
    """

    id: str | None
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[Wanted]
    timeout_s: float | None = None
    wishes: Mapping[str, Any] = field(default_factory=dict)


def read(
    body: bytes | bytearray,
    header_length: str | None,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> Asked:
    """Reads an inference request.

    Args:
      body: of the HTTP request.
      header_length: `Inference-Header-Content-Length`, None where there is none.
      inputs, outputs: of the model.

    Raises:
      Unreadable: for anything that is not of the protocol, or of another model.
    """
    size = _header_length(header_length, len(body))
    head = as_object(_json(bytes(body[:size])), "the request")
    only(head, {"id", "parameters", "inputs", "outputs"}, "the request")
    name = head.get("id")
    if not isinstance(name, str | None):
        raise Unreadable(f"id: expected a string, got {short(name)}.")
    parameters = as_object(head.get("parameters", {}), "parameters")
    binary, timeout_s, wishes = _parameters(parameters)
    rest = Rest(memoryview(body)[size:])
    arrays = _inputs(head.get("inputs"), inputs, rest)
    rest.check_empty()
    return Asked(name, arrays, _outputs(head, outputs, binary), timeout_s, wishes)


def write(
    asked: Asked,
    outputs: Mapping[str, np.ndarray],
    parameters: Mapping[str, Any],
    *,
    model: str,
    version: str,
) -> tuple[bytes, int | None]:
    """Writes an answer.

    Args:
      asked: the request.
      outputs: arrays by name.
      parameters: of the answer.
      model, version: of the model.

    Returns:
      The body, and how many bytes of it are JSON; None: all, for no output is binary.
    """
    told, parts = [], []
    for wanted in asked.outputs:
        x = outputs[wanted.name]
        about: dict[str, Any] = {
            "name": wanted.name,
            "datatype": NAMES[x.dtype],
            "shape": list(x.shape),
        }
        if wanted.binary:
            content = x.tobytes()
            about["parameters"] = {"binary_data_size": len(content)}
            parts.append(content)
        else:
            about["data"] = listed(x)
        told.append(about)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if asked.id is not None:
        answer["id"] = asked.id
    answer |= {"parameters": dict(parameters), "outputs": told}
    head = json.dumps(answer, allow_nan=False).encode()
    if not any(wanted.binary for wanted in asked.outputs):
        return head, None
    return b"".join([head, *parts]), len(head)


# -- reading


def _header_length(given: str | None, length: int) -> int:
    if given is None:
        return length
    digits = given.isascii() and given.isdigit() and len(given) < 19
    if not digits or int(given) > length:
        raise Unreadable(
            "Inference-Header-Content-Length: expected the bytes of JSON at the begin "
            f"of a body of {length} bytes, got {short(given)}."
        )
    return int(given)


def _json(text: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON; send it as binary")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise Unreadable("the JSON is nested too deeply.") from None
    except ValueError as error:  # also of bytes that are no UTF-8, and huge integers
        raise Unreadable(f"the request is no JSON: {error!s:.200}.") from None


def _parameters(given: dict[str, Any]) -> tuple[bool, float | None, dict[str, Any]]:
    """Whether outputs are binary, the timeout in seconds, and the wishes."""
    known = {"binary_data_output", "timeout", "priority", "min_rate", "rate"}
    if any(name.startswith("sequence_") for name in given):
        raise Unreadable("parameters: the model has no state, so no sequences.")
    only(given, known, "parameters")
    binary = as_flag(given, "binary_data_output", default=False)
    timeout = as_int(given.get("timeout", 0), "parameter timeout (microseconds)")
    if not 0 <= timeout <= _DAY_US:
        raise Unreadable(
            f"parameter timeout: expected 0 (none) to {_DAY_US} microseconds, got "
            f"{timeout}."
        )
    wishes: dict[str, Any] = {}
    if "priority" in given:
        wishes["priority"] = as_int(given["priority"], "parameter priority")
    for name in ("min_rate", "rate"):
        if name in given:
            value = given[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Unreadable(
                    f"parameter {name}: expected a number, got {short(value)}."
                )
            wishes[name] = float(value) if abs(value) < 1e9 else math.inf
    return binary, timeout / 1e6 if timeout else None, wishes


def _inputs(given: Any, tensors: Sequence[Tensor], rest: Rest) -> dict[str, np.ndarray]:
    if not isinstance(given, list):
        raise Unreadable(f"inputs: expected a list, got {short(given)}.")
    known = {tensor.name: tensor for tensor in tensors}
    found: dict[str, np.ndarray] = {}
    for each in given:
        each = as_object(each, "an input")
        name = each.get("name")
        if not isinstance(name, str) or name not in known:
            raise Unreadable(f"input {short(name)} is unknown; there are {[*known]}.")
        if name in found:
            raise Unreadable(f"input {name!r} comes twice.")
        found[name] = array_of(each, known[name], rest)
    if missing := [name for name in known if name not in found]:
        raise Unreadable(f"inputs {missing} are missing; there are {[*known]}.")
    return found


def _outputs(
    head: Mapping[str, Any], tensors: Sequence[Tensor], binary: bool
) -> list[Wanted]:
    names = [tensor.name for tensor in tensors]
    given = head.get("outputs", [])
    if not isinstance(given, list):
        raise Unreadable(f"outputs: expected a list, got {short(given)}.")
    if not given:
        return [Wanted(name, binary) for name in names]
    found: list[Wanted] = []
    for each in given:
        each = as_object(each, "an output")
        only(each, {"name", "parameters"}, "an output")
        name = each.get("name")
        if name not in names or any(name == wanted.name for wanted in found):
            raise Unreadable(
                f"output {short(name)} is unknown, or comes twice; there are {names}."
            )
        what = f"output {name!r}, parameters"
        parameters = as_object(each.get("parameters", {}), what)
        for other in ("classification", "shared_memory_region"):
            if other in parameters:
                raise Unreadable(f"{what}: {other} is not served.")
        only(parameters, {"binary_data"}, what)
        found.append(Wanted(name, as_flag(parameters, "binary_data", default=binary)))
    return found
