"""Requests of the Open Inference Protocol, ready to be sent to our server."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mslice_jax.serve.tensors import NAMES

from .load import Message


def infer(
    inputs: Mapping[str, np.ndarray],
    parameters: Mapping[str, Any] | None = None,
    *,
    binary: bool = True,
) -> Message:
    """An inference request.

    Args:
      inputs: arrays by name, the rows of one request.
      parameters: of it: `timeout`, `priority`, `min_rate`, `rate`.
      binary: whether tensors are binary, in the answer too; else all is JSON.
    """
    tensors, parts = [], []
    for name, x in inputs.items():
        about: dict[str, Any] = {
            "name": name,
            "datatype": NAMES[x.dtype],
            "shape": list(x.shape),
        }
        if binary:
            parts.append(np.ascontiguousarray(x).tobytes())
            about["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            about["data"] = x.tolist()
        tensors.append(about)
    asked = {"binary_data_output": True} if binary else {}
    head = {"inputs": tensors, "parameters": {**asked, **(parameters or {})}}
    text = json.dumps(head).encode()
    if not binary:
        return Message(text, {"Content-Type": "application/json"})
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(text)),
    }
    return Message(b"".join([text, *parts]), headers)
