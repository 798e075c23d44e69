"""HTTP before several replicas."""

from typing import Any

from prometheus_client import Gauge

from .app import App
from .handle import Handle, of_ray
from .live import Live
from .metrics import Metrics
from .replica import Described


class Front:
    """HTTP before the replicas: the routes of one server, and their requests handed on.

    Args:
      replicas: Ray Serve's handle of them.
      about: what they serve.
      flags: the options of the command.
    """

    def __init__(self, replicas: Any, about: Described, flags: Any) -> None:
        metrics = FrontMetrics(about.rates, slo_s=about.slo_s, accuracy=about.accuracy)
        handle = of_ray(replicas, about, metrics)
        metrics.of_front(handle)
        shown = {
            "name": flags.name,
            "rates": list(about.rates),
            "slo_ms": flags.slo_ms,
            "policy": flags.policy,
        }
        self._app = App(
            engine=handle,
            executor=handle,
            metrics=metrics,
            live=Live(metrics, shown),
            name=flags.name,
            token=flags.token,
            body_bytes=int(flags.body_mb * 2**20),
            held_bytes=int(flags.held_mb * 2**20),
        )

    def __serve_build_asgi_app__(self) -> Any:
        """Asked for by `serve.ingress`."""
        return self._app.asgi()


class FrontMetrics(Metrics):
    """What a front counts: its requests, and not the batches, which others run."""

    def of_front(self, handle: Handle) -> None:
        """Adds what a handle tells when it is asked."""
        to: Any = {"registry": self.registry}
        waiting = Gauge(
            "mslice_queue_requests", "Requests that wait, here or in a replica", **to
        )
        waiting.set_function(lambda: handle.waiting)
        lost = Gauge(
            "mslice_attempts_lost",
            "How many times a replica was gone before it had answered",
            **to,
        )
        lost.set_function(lambda: handle.lost)
        ready = Gauge("mslice_ready", "Whether requests are taken", **to)
        ready.set_function(lambda: float(handle.running))

    def ended(self, outcome: str, rate: float | None, seconds: float) -> None:
        """Counts a request that was taken."""
        super().ended(outcome, rate, seconds)
        if rate is not None:
            self.rate.set(rate)
