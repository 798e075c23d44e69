"""Four loads: recorded ones where their files are, else drawn ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mslice_jax import serve

RECORDED = {
    "Azure code": ("AzureLLMInferenceTrace_code", None),
    "Azure conversation": ("AzureLLMInferenceTrace_conv", None),
    "Twitter": ("Twitter_volume_AAPL", "value"),
    "load balancer": ("elb_request_count", "value"),
}
"""Name -> the begin of the file's, and its column of counts: arrivals at language
models of Azure (2023), tweets on a company, requests at a load balancer of Amazon (both
of the Numenta Anomaly Benchmark)."""

Workload = Callable[[float, float, int], np.ndarray]
"""Mean arrivals a second, seconds, seed -> times."""


def workloads(folder: Path | None) -> dict[str, Workload]:
    """The four of a folder; four that are drawn, without one.

    Raises:
      ValueError: if one of the files is not there, or no trace.
    """
    if folder is None:
        return drawn()
    found: dict[str, Workload] = {}
    for name, (begin, counts) in RECORDED.items():
        files = sorted(folder.glob(f"{begin}*.csv"))
        if not files:
            raise ValueError(f"--traces {folder}: there is no {begin}*.csv.")
        recorded = serve.read_csv(files[0], counts=counts)

        def replayed(
            mean: float, seconds: float, seed: int, recorded: serve.Recorded = recorded
        ) -> np.ndarray:
            return serve.replay(recorded, mean, seconds, seed=seed)

        found[name] = replayed
    return found


def drawn() -> dict[str, Workload]:
    """Four generated ones of the same mean."""

    def mmpp(mean: float, seconds: float, seed: int) -> np.ndarray:
        low = mean * 2 / 17  # 16-fold, and the two states as long
        return serve.mmpp(low, 16 * low, seconds, dwell_s=seconds / 8, seed=seed)

    return {
        "Poisson": lambda mean, s, seed: serve.poisson(mean, s, seed=seed),
        "Gamma": lambda mean, s, seed: serve.gamma(mean, s, cv=4, seed=seed),
        "MMPP": mmpp,
        "diurnal": lambda mean, s, seed: serve.diurnal(mean, s, ratio=9, seed=seed),
    }
