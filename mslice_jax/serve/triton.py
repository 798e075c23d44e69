"""What clients of Triton ask besides the protocol: a configuration, and statistics.

`get_model_config` and `get_inference_statistics` of tritonclient read them, and so do
the tools that put load on a server and look at both (perf_analyzer, GenAI-Perf). Fields
are those of Triton's model configuration and statistics extensions.
"""

import math
from collections.abc import Mapping
from typing import Any

from .behind import Reads
from .metrics import Metrics
from .signature import Tensor
from .tensors import datatype

EXTENSIONS = ("model_configuration", "statistics")
"""As the metadata of a server names them."""


def config(executor: Reads, name: str) -> dict[str, Any]:
    """The configuration of the model, as Triton has it.

    A client adds an axis for the batch in front of `dims` where `max_batch_size` is
    above 0; so it is 0, and all axes are in `dims`, where rows are along another axis.
    """
    tensors = executor.inputs + executor.outputs
    first = all(x.batch == 0 for x in tensors)
    return {
        "name": name,
        "platform": "mslice_jax",
        "backend": "mslice_jax",
        "max_batch_size": executor.batch_sizes[-1] if first else 0,
        "input": [_tensor(x, first) for x in executor.inputs],
        "output": [_tensor(x, first) for x in executor.outputs],
        "dynamic_batching": {"preferred_batch_size": list(executor.batch_sizes)},
        "model_transaction_policy": {"decoupled": False},
        "version_policy": {"latest": {"num_versions": 1}},
    }


def statistics(metrics: Metrics, name: str, version: str) -> dict[str, Any]:
    """What the model has done since the server started, in counts and nanoseconds.

    The numbers are those of `/metrics`. A request succeeds that has an answer, in time
    or late; one that was taken and has none, fails: shed, its batch failed, its client
    hung up. To put rows together and to take them apart is part of `compute_infer`.
    """
    value = metrics.value
    answered = value("mslice_request_seconds_count")
    total_s = value("mslice_request_seconds_sum")
    queue_s = value("mslice_queue_seconds_sum")
    batches = _by_rows(metrics)
    empty = _took(0, 0.0)
    none_s = _took(answered, 0.0)
    stats = {
        "name": name,
        "version": version,
        "last_inference": math.floor(
            1e3 * value("mslice_last_batch_timestamp_seconds")
        ),
        "inference_count": sum(int(rows * n) for rows, (n, _) in batches.items()),
        "execution_count": sum(int(n) for n, _ in batches.values()),
        "inference_stats": {
            "success": _took(answered, total_s),
            "fail": _took(
                value("mslice_unanswered_seconds_count"),
                value("mslice_unanswered_seconds_sum"),
            ),
            "queue": _took(value("mslice_queue_seconds_count"), queue_s),
            "compute_input": none_s,
            "compute_infer": _took(answered, max(total_s - queue_s, 0.0)),
            "compute_output": none_s,
            "cache_hit": empty,
            "cache_miss": empty,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _took(n, 0.0),
                "compute_infer": _took(n, seconds),
                "compute_output": _took(n, 0.0),
            }
            for rows, (n, seconds) in sorted(batches.items())
        ],
    }
    return {"model_stats": [stats]}


def _tensor(x: Tensor, first: bool) -> dict[str, Any]:
    dims = list(x.shape[1:] if first else x.shape)
    return {"name": x.name, "data_type": f"TYPE_{datatype(x)}", "dims": dims}


def _took(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": round(1e9 * seconds)}


def _by_rows(metrics: Metrics) -> Mapping[int, tuple[float, float]]:
    """How many batches of so many rows have run, and their seconds, at all rates."""
    found: dict[int, tuple[float, float]] = {}
    for labels, count in metrics.each("mslice_batches_total"):
        rows = int(labels["rows"])
        n, seconds = found.get(rows, (0.0, 0.0))
        took = metrics.value("mslice_busy_seconds_total", **labels)
        found[rows] = n + count, seconds + took
    return found
