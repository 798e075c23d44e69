"""A profile: a value that says what each rate costs, and where that was measured."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.layers import Layer
from ..core.rates import rate_key
from .exponent import Exponent, fit

COSTS = ("parameters", "flops", "memory_bytes", "latency_ms")
"""What an exponent is fitted to, and what the picture shows."""


@dataclass(frozen=True, kw_only=True)
class RateProfile:
    """The cost of one rate, measured on the extracted network.

    Attributes:
      parameters: numbers in the narrow "params" that this rate reads, as the report
        counts them. Of norms with one set per rate, only its own set counts; batch
        statistics do not.
      flops: floating-point operations of one call, all of them, counted from the
        program of the network as it was written: a multiplication with an addition is
        2, and norms, activations and sums count as well as convolutions; exponentials,
        roots and padding do not. The body of a loop counts as often as it runs, or once
        where only the run knows; of the branches of a `cond` the longest counts.
      latency_ms: median time of a call in milliseconds, compiled, weights in place.
      contraction_flops: those of dense layers, convolutions and attention alone, as
        the report counts them, for the inputs of this call.
      xla_flops: XLA's count of the same program before it optimizes. NaN where the
        backend has none.
      flops_differ: why the two counts are more than 2 % apart; empty if they are not.
      latency_p99_ms: the 99th percentile of the times; of less than 100 the longest.
      weight_bytes: of all variables of the extracted network, statistics and the norms
        of narrower rates among them.
      temporary_bytes: what the compiled program needs beside its weights, inputs and
        results, as XLA plans it. NaN where the backend does not say.
      activation_bytes: of all arrays that one layer hands to another or to the caller,
        as it was written; the sum over `layers`.
      layers: the costs layer by layer, in the order in which they run.
    """

    parameters: int
    flops: float
    latency_ms: float
    contraction_flops: float = math.nan
    xla_flops: float = math.nan
    flops_differ: str = ""
    latency_p99_ms: float = math.nan
    weight_bytes: int = 0
    temporary_bytes: float = math.nan
    activation_bytes: int = 0
    layers: tuple[Layer, ...] = ()

    @property
    def memory_bytes(self) -> float:
        """`weight_bytes` + `temporary_bytes`: what `choose_rate` holds its limit to.

        The inputs, the results and the program's code are not in it.
        """
        return self.weight_bytes + self.temporary_bytes

    def table(self) -> str:
        """The layers as text: a row each, the sums at the end."""
        from .tables import of_layers

        return of_layers(self)


@dataclass(frozen=True, kw_only=True)
class Profile(Mapping[float, RateProfile]):
    """What each rate costs, by rate in ascending order, and where it was measured.

    A mapping like a dict. `print` shows it as a table; `save` and `Profile.load` keep
    it as JSON, so that `choose_rate` and a server need not measure again.

    Attributes:
      costs: rate -> its costs.
      device: where the latency was measured, such as "cpu" or "NVIDIA H200".
      platform: of JAX, such as "cpu" or "gpu".
      inputs: the types of the arrays of the call, such as ("float32[8,32]",).
      batch: the size of the first axis of the first array; None without one.
      repeats: how many calls of each rate were timed.
      jax: the version of JAX.

    Example:
      >>> from mslice_jax.profile import Profile, RateProfile
      >>> costs = {r: RateProfile(parameters=8, flops=16 * r * r, latency_ms=r)
      ...          for r in (0.5, 1.0)}
      >>> found = Profile(costs=costs, device="cpu")
      >>> found[0.5].flops, found.exponent("flops").value
      (4.0, 2.0)
    """

    costs: Mapping[float, RateProfile]
    device: str
    platform: str = ""
    inputs: tuple[str, ...] = ()
    batch: int | None = None
    repeats: int = 0
    jax: str = ""
    _sorted: dict[float, RateProfile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ascending = dict(sorted(self.costs.items()))
        object.__setattr__(self, "_sorted", ascending)

    def __getitem__(self, rate: float) -> RateProfile:
        return self._sorted[rate]

    def __iter__(self) -> Iterator[float]:
        return iter(self._sorted)

    def __len__(self) -> int:
        return len(self._sorted)

    def exponent(self, of: str = "latency_ms") -> Exponent | None:
        """The power of r that a cost goes with, fitted to the rates of this profile.

        Args:
          of: the name of a number of `RateProfile`, such as "latency_ms" or "flops".

        Returns:
          The fit, or None where less than two rates have that cost.

        Raises:
          ValueError: for a name that is no cost.
        """
        return fit(of, self.all_of(of))

    def all_of(self, of: str) -> dict[float, float]:
        """One cost of all rates, by rate.

        Raises:
          ValueError: for a name that is no cost.
        """
        names = [*RateProfile.__dataclass_fields__, "memory_bytes"]
        numbers = [n for n in names if n not in ("layers", "flops_differ")]
        if of not in numbers:
            raise ValueError(f"{of!r} is no cost; expected one of {numbers}.")
        return {rate: float(getattr(cost, of)) for rate, cost in self.items()}

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Writes the profile as JSON; see `mslice_jax.profile.save`."""
        from .saved import save

        save(self, path, overwrite=overwrite)

    @staticmethod
    def load(path: Any) -> "Profile":
        """Reads a profile that was saved; see `mslice_jax.profile.load`."""
        from .saved import load

        return load(path)

    def plot(self, path: str | Path, *, title: str = "cost of each rate") -> None:
        """Writes a PNG of the costs over the rate, see `plots.plot_costs`."""
        from ..plots import plot_costs

        known = {name: self.all_of(name) for name in COSTS}
        shown = {n: c for n, c in known.items() if all(v > 0 for v in c.values())}
        plot_costs(path, shown, title=title)

    def __str__(self) -> str:
        from .tables import of_rates

        return of_rates(self)

    def __repr__(self) -> str:
        rates = ", ".join(map(rate_key, self))
        return f"Profile(rates {rates}; {self.device}, batch {self.batch})"
