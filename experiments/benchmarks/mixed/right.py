"""Requests that are right, in all the forms that there are, and the look at answers."""

import gzip
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from .network import CLASSES, FEATURES, MOST_ROWS, RATES, Pool
from .wire import Reply, chunked, request

MINUTE_US = 60_000_000


@dataclass(frozen=True)
class Right:
    """A request that has to be answered.

    Attributes:
      content: its bytes, head and body.
      name: its id, that of no other request.
      rows: which of the pool's it brings.
      least, only: the rates that it accepts.
      hopeless: whether its own timeout is too short for any rate.
      binary: the outputs that it wants so.
      outputs: the names of the outputs that it wants.
    """

    content: bytes
    name: str
    rows: np.ndarray
    least: float = 0.0
    only: float | None = None
    hopeless: bool = False
    binary: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("logits", "same")


def tensors(
    x: np.ndarray, kind: np.ndarray, binary: bool
) -> tuple[list[dict[str, Any]], bytes]:
    """The inputs as JSON has them, and their binary part."""
    told, parts = [], []
    for name, datatype, array in (("x", "FP32", x), ("kind", "INT32", kind)):
        about: dict[str, Any] = {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
        }
        if binary:
            about["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(array.tobytes())
        else:
            about["data"] = array.reshape(-1).tolist()
        told.append(about)
    return told, b"".join(parts)


def packed(
    asked: dict[str, Any], binary: bytes | None, lines: dict[str, Any] | None = None
) -> bytes:
    """A request of JSON and, unless None, a binary part."""
    text, lines = json.dumps(asked).encode(), dict(lines or {})
    if binary is None:
        return request(text, lines)
    size = {"Inference-Header-Content-Length": len(text)}
    return request(text + binary, size | lines)


def drawn(rng: np.random.Generator, pool: Pool, number: int) -> Right:
    """A right request at random."""
    rows = rng.integers(0, len(pool.x), rng.integers(1, MOST_ROWS + 1))
    name, binary = f"r{number}", bool(rng.integers(2))
    inputs, rest = tensors(pool.x[rows], pool.kind[rows], binary)
    if rng.integers(2):  # the order of inputs is free, that of binary parts follows
        inputs.reverse()
        rest = rest[pool.x[rows].nbytes :] + rest[: pool.x[rows].nbytes]
    parameters: dict[str, Any] = {"timeout": MINUTE_US}
    least, only, hopeless = 0.0, None, False
    match rng.integers(6):
        case 0:
            only = parameters["rate"] = float(rng.choice(RATES))
        case 1 | 2:
            least = parameters["min_rate"] = float(rng.choice(RATES))
        case 3 if rng.integers(3) == 0:
            hopeless, parameters["timeout"] = True, 1
    if rng.integers(2):
        parameters["priority"] = int(rng.integers(-1, 3))
    asked = {"id": name, "inputs": inputs, "parameters": parameters}
    outputs, wanted = ("logits", "same"), ()
    match rng.integers(4):
        case 0:
            parameters["binary_data_output"] = True
            wanted = outputs
        case 1:
            asked["outputs"] = [{"name": "logits"}]
            outputs = ("logits",)
        case 2:
            flag = {"binary_data": True}
            asked["outputs"] = [{"name": "same", "parameters": flag}]
            asked["outputs"] += [{"name": "logits"}]
            outputs, wanted = ("same", "logits"), ("same",)
    content = packed(asked, rest if binary else None)
    text, _, body = content.partition(b"\r\n\r\n")
    if rng.integers(6) == 0:  # packed, or in chunks
        size = {}
        if binary:
            size["Inference-Header-Content-Length"] = len(body) - len(rest)
        if rng.integers(2):
            small = gzip.compress(body)
            content = request(small, size | {"Content-Encoding": "gzip"})
        else:
            content = chunked(body, int(rng.integers(1, 200)), size)
    return Right(content, name, rows, least, only, hopeless, wanted, outputs)


def found(reply: Reply) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of an answer, and its outputs, binary or not.

    Raises:
      ValueError, KeyError: for what is no answer of the protocol.
    """
    at = reply.headers.get("inference-header-content-length")
    size = len(reply.body) if at is None else int(at)
    told, rest = json.loads(reply.body[:size]), reply.body[size:]
    outputs = {}
    for each in told["outputs"]:
        if "data" in each:
            array = np.asarray(each["data"], np.float32)
        else:
            count = each["parameters"]["binary_data_size"]
            array, rest = np.frombuffer(rest[:count], "<f4"), rest[count:]
        outputs[each["name"]] = array.reshape(each["shape"])
    if rest:
        raise ValueError(f"{len(rest)} bytes are left over")
    return told, outputs


def fault(asked: Right, reply: Reply, pool: Pool, versions: set[int]) -> str | None:
    """What is wrong with an answer, or None.

    Args:
      asked: the request.
      reply: its answer.
      pool: has the right answers.
      versions: of the weights, those that may have been served then.
    """
    if asked.hopeless:
        if reply.code == 504 and reply.reason:
            return None
        return f"expected 504 for a timeout of 1 us, got {reply.code}: {reply.reason}"
    if reply.code != 200:
        return f"expected 200, got {reply.code}: {reply.reason}"
    try:
        told, outputs = found(reply)
        name, rate = told["id"], float(told["parameters"]["rate"])
        binary = {x["name"] for x in told["outputs"] if "data" not in x}
    except (ValueError, KeyError, TypeError) as error:
        return f"no answer of the protocol: {error!r}"
    if name != asked.name:
        return f"the answer to {name!r} came to {asked.name!r}"
    if rate not in RATES or rate < asked.least or asked.only not in (None, rate):
        return f"rate {rate} was not asked for ({asked.least}, {asked.only})"
    if tuple(outputs) != asked.outputs or binary != set(asked.binary):
        return f"expected the outputs {asked.outputs}, got {[*outputs]}"
    count = len(asked.rows)
    if outputs["logits"].shape != (count, CLASSES):
        return f"logits of shape {outputs['logits'].shape} for {count} rows"
    if "same" in outputs:
        same = outputs["same"]
        if same.shape != (count, FEATURES) or (same != pool.x[asked.rows]).any():
            return "rows of somebody else"
    there = pool.versions(asked.rows, rate, outputs["logits"])
    if not there:
        return f"wrong rows at rate {rate}"
    if not there & versions:
        return f"rows of the weights {there}, where {versions} were served"
    return None
