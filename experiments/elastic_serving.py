"""A server whose width follows the load, measured over HTTP, and simulated beside it.

    python -m experiments.elastic_serving --traces DIR
    python -m experiments.elastic_serving --checkpoint runs/cifar_resnet

The server (``python -m mslice_jax.serve``) has a core of its own, the load another: an
open loop, in which every request is sent at its time, and is in time if its answer is
there within T of that. T is ten times what the full width takes for one request. A run
whose load generator was late itself is repeated, and is void if it stays so.

It trains a network of digits behind noise (or takes one), measures its latency table
and what its narrowest rate sustains, and then loads it

* with four traces, compressed to `--seconds` and a mean of `--load` times what the
  narrowest rate sustains: every fixed width, and every policy. The files of `--traces`
  are AzureLLMInferenceTrace_code*.csv, AzureLLMInferenceTrace_conv*.csv (Azure public
  data set), Twitter_volume_AAPL*.csv and elb_request_count*.csv (Numenta Anomaly
  Benchmark); without it four are drawn;
* with bursts that are sixteen times the quiet load, for the picture of the paper:
  arrivals, rate, latency and misses over time.

Needs two cores that do nothing else. Training takes some minutes, and
``--train-only`` does no more than that; the rest takes about
15 minutes. Expected: the elastic policy answers as many in time as the narrowest fixed
width, at a higher accuracy; the simulator is within 3 points.

It leaves in its workdir (runs/elastic_serving) table.md, results.json, serving.png,
attainment_TRACE.png, all requests of each run, and runs.jsonl, with which a command
that was interrupted goes on.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from mslice_jax import serve

from .process import print_anything
from .recipe import fail
from .serving import network
from .serving.load import LoadError
from .serving.options import Options
from .serving.outcome import Result
from .serving.report import as_simulation, attainment, markdown, row_of, save
from .serving.server import ServerError
from .serving.stand import FIXED, Stand
from .serving.workloads import Workload, workloads

POLICIES = ("elastic", "latency-first", "window", "slackfit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """What is run.

    Attributes:
      traces: a folder with the four recorded traces; four are drawn unless given.
      policies: that are compared with the fixed widths; elastic is the first.
      seconds: of each trace.
      load: the mean of a trace, as a share of what the narrowest rate sustains.
      swing_seconds: of the bursts for the picture.
      seed: of the arrivals.
      train_only: trains the network, and nothing else.
    """

    traces: Path | None = None
    policies: tuple[str, ...] = POLICIES
    seconds: float = 15.0
    load: float = 0.4
    swing_seconds: float = 30.0
    seed: int = 0
    train_only: bool = False

    def check(self) -> None:
        """Raises ValueError for settings that do not fit."""
        super().check()
        if unknown := set(self.policies) - set(POLICIES):
            raise ValueError(f"--policies {unknown}: expected some of {POLICIES}.")
        for name in ("seconds", "load", "swing_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} is above 0.")
        if self.seed < 0:
            raise ValueError("--seed is a number from 0.")


def main(args: list[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for a setting that does not fit."""
    print_anything()
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    try:
        settings = tyro.cli(
            Settings,
            prog="python -m experiments.elastic_serving",
            description="A server whose width follows the load, measured over HTTP.",
            args=args,
        )
        settings.check()
        loads = workloads(settings.traces)
        if settings.train_only:
            network.checkpoint(settings.workdir, settings.network, settings.epochs)
            return 0
        with Stand(settings, say) as stand:
            compared(stand, settings, loads, say)
    except (ValueError, OSError, ServerError, LoadError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on.")
        return 130
    return 0


def compared(
    stand: Stand, settings: Settings, loads: dict[str, Workload], say: Any
) -> None:
    """Runs what is left to run, and writes tables and pictures."""
    capacity = stand.capacity()
    say(
        f"T = {1e3 * stand.slo_s:.1f} ms; the narrowest rate sustains {capacity:g} "
        "requests a second."
    )
    about = stand.about()
    swing = swinging(stand, settings)
    mean, rows = settings.load * capacity, []
    fixed = [f"{FIXED}{rate:g}" for rate in stand.table.rates]
    # All that one process serves comes together.
    for policy in (*fixed, *settings.policies):
        for trace, arrivals_of in loads.items():
            arrivals = arrivals_of(mean, settings.seconds, settings.seed)
            key = f"{trace}/{policy}/{mean:g} a second for {settings.seconds:g} s"
            key += f"/seed {settings.seed}"
            measured = stand.run(key, policy, arrivals)["measured"]
            simulated = stand.simulated(policy, arrivals)
            rows.append(row_of(trace, policy, measured, simulated))
    order = list(loads)
    rows.sort(key=lambda row: order.index(row["trace"]))
    folder = settings.workdir
    (folder / "table.md").write_text(markdown(rows), encoding="utf-8")
    save(folder / "results.json", {**about, "rows": rows, "swing": swing})
    attainment(folder, rows)
    print(markdown(rows))
    worst = max(abs(row["difference"]) for row in rows if not row["void"])
    say(f"The simulator is at most {worst:.2f} points off. All is in {folder}.")


def swinging(stand: Stand, settings: Settings) -> dict[str, Any]:
    """The paper's picture: a load that swings 16-fold, served by the elastic policy."""
    peak, seconds = 0.9 * stand.capacity(), settings.swing_seconds
    arrivals = serve.mmpp(
        peak / 16, peak, seconds, dwell_s=seconds / 10, seed=settings.seed
    )
    key = f"swing/elastic/{peak:g} a second for {seconds:g} s, seed {settings.seed}"
    told = stand.run(key, "elastic", arrivals)
    done = Result.read(stand.requests(key))
    serve.plot_serving(
        settings.workdir / "serving.png",
        as_simulation(done),
        title=f"{peak / 16:.0f} to {peak:.0f} requests a second, "
        f"T = {1e3 * stand.slo_s:.0f} ms",
    )
    return told["measured"]


if __name__ == "__main__":
    sys.exit(main())
