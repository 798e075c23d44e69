"""Several replicas of a server, on Ray Serve.

Each replica is what one server is: an executor and an engine that chooses the rate of
every batch. Ray starts and stops them, by `scaling.Scaling`. Before them is a front
that speaks HTTP, and knows deadlines; `Handle` is the same for Python.

The extra ``ray`` brings it. Only functions of this module import it.
"""

import dataclasses
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

from .handle import Handle, of_ray, ray_modules
from .replica import Described, Replica, described
from .scaling import Scaling
from .settings import of_python

_log = logging.getLogger(__name__)

REPLICAS = "replicas"
"""The name of their deployment; that of the front is "front"."""


def run(
    checkpoint: str | os.PathLike[str],
    *,
    replicas: int | tuple[int, int] = (1, 4),
    scaling: Scaling | None = None,
    resources: Mapping[str, Any] | None = None,
    http: bool = True,
    **settings: Any,
) -> Handle:
    """Serves a network with several replicas, and returns when they are ready.

    It joins the Ray cluster that it is started in, or starts one on this machine. First
    one worker tries the network: loads it, compiles, measures, and compares T with what
    the narrowest program takes. Only then Ray Serve starts, with the front at
    `host` and `port`, where it speaks the Open Inference Protocol. Called again with
    the same `name`, it replaces replica by replica, with new weights for instance.

    Args:
      checkpoint: a file of `mslice_jax.save`, or a folder with a `network.mslice`;
        every machine of the cluster has to find it there.
      replicas: how many; the least and the most, or one number for ever.
      scaling: the thresholds; `least` and `most` are those of `replicas`.
      resources: of each replica, as Ray has them (`ray_actor_options`): one CPU, unless
        given. ``{"num_cpus": 1, "num_gpus": 1}`` gives each a GPU.
      http: whether there is a front.
      **settings: options of ``python -m mslice_jax.serve``, by their names in Python:
        ``model="nets:model"``, ``slo_ms=50``, ``batches=(1, 4)``. A `queue` is that of
        one replica. `margin_ms` covers the way through Ray, too; 5, at most T/20,
        unless given.

    Returns:
      A handle that asks the replicas, without HTTP.

    Raises:
      ImportError: if Ray Serve is not installed.
      TypeError: for a setting that there is not.
      ValueError, OSError: for anything that does not fit: a number of replicas, no
        network, a rate that was not declared, a T that is too short.
      RuntimeError: if Ray Serve cannot start it.

    Example:
      >>> from mslice_jax.serve.ray import run
      >>> handle = run("net.mslice", replicas=(1, 4), slo_ms=50)  # doctest: +SKIP
      >>> handle.ask({"x": x}, min_rate=0.5).rate  # doctest: +SKIP
      1.0
    """
    rule = _rule(replicas, scaling)
    flags = of_python(checkpoint, settings)
    ray, serve = ray_modules()
    actor = {"num_cpus": 1, **(resources or {})}
    started = not ray.is_initialized()
    # The proxy of a larger cluster may be on another machine.
    first = started or (len(ray.nodes()) == 1 and not serve.status().proxies)
    if http and first:
        _check_port(flags)
    if started:
        ray.init()
    try:
        about = _tried(ray, flags, actor)
    except BaseException:
        if started:
            ray.shutdown()
        raise
    serve.start(http_options={"host": flags.host, "port": flags.port})
    serve.run(
        _application(serve, flags, about, rule, actor, http),
        name=flags.name,
        route_prefix="/" if http else None,
    )
    return of_ray(serve.get_deployment_handle(REPLICAS, flags.name), about)


def connect(name: str = "default") -> Handle:
    """A handle of what `run` serves already, from another process of the cluster.

    Args:
      name: of the model.

    Raises:
      ImportError: if Ray Serve is not installed.
      ValueError: if there is no such model.
    """
    _, serve = ray_modules()
    found = serve.status().applications
    if name not in found:
        raise ValueError(f"no model {name!r} is served; there are {sorted(found)}.")
    replicas = serve.get_deployment_handle(REPLICAS, name)
    return of_ray(replicas, replicas.describe.remote().result())


def stop(name: str = "default") -> None:
    """Stops the replicas of a model; who waits is answered before.

    Args:
      name: of the model.

    Raises:
      ImportError: if Ray Serve is not installed.
    """
    ray_modules()[1].delete(name)


def _rule(replicas: Any, scaling: Scaling | None) -> Scaling:
    pair = replicas if isinstance(replicas, tuple | list) else (replicas, replicas)
    if len(pair) != 2:
        raise ValueError(
            f"replicas: expected the least and the most, got {replicas!r}."
        )
    return dataclasses.replace(scaling or Scaling(), least=pair[0], most=pair[1])


def _tried(ray: Any, flags: Any, actor: Mapping[str, Any]) -> Described:
    """What a worker with the resources of a replica finds; its errors are raised."""
    if short := _short_of(ray.available_resources(), actor):
        _log.warning(
            "A worker has to try the network first, and waits until %s are free in the "
            "cluster. Replicas that run hold what they have: stop(name) ends them.",
            " and ".join(short),
        )
    # The process ends after it, so that a device is free again.
    task = ray.remote(max_calls=1, max_retries=0, **actor)(described)
    try:
        return ray.get(task.remote(flags))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None


def _short_of(free: Mapping[str, float], actor: Mapping[str, Any]) -> list[str]:
    """What is not free of the resources that an actor takes, in words."""
    asked = {"CPU": actor.get("num_cpus"), "GPU": actor.get("num_gpus")}
    asked |= actor.get("resources") or {}
    return [
        f"{wanted:g} {name} (there are {free.get(name, 0):g})"
        for name, wanted in asked.items()
        if wanted and wanted > free.get(name, 0)
    ]


def _check_port(flags: Any) -> None:
    """Raises OSError if the port of the front is in use."""
    family = socket.AF_INET6 if ":" in flags.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((flags.host, flags.port))
    except OSError as error:
        raise OSError(
            f"cannot listen on port {flags.port} of {flags.host}: {error.strerror}. "
            "Choose another: run(..., port=...)."
        ) from error


def _application(
    serve: Any,
    flags: Any,
    about: Described,
    rule: Scaling,
    actor: Mapping[str, Any],
    http: bool,
) -> Any:
    count: dict[str, Any] = {"num_replicas": rule.least}
    if rule.least < rule.most:
        policy = {
            "policy_function": "mslice_jax.serve.scaling:ByMeanRate",
            "policy_kwargs": dataclasses.asdict(rule),
        }
        scaled = {
            "min_replicas": rule.least,
            "max_replicas": rule.most,
            "upscale_delay_s": rule.up_s,
            "downscale_delay_s": rule.down_s,
            "metrics_interval_s": rule.window_s / 4,
            "look_back_period_s": rule.window_s,
            "policy": policy,
        }
        count = {"autoscaling_config": scaled}
    quiet = {"enable_access_log": False}  # a line for every request
    replicas = serve.deployment(
        Replica,
        name=REPLICAS,
        ray_actor_options=dict(actor),
        # The queue is the engine's, which plans with it; Ray's own stay empty. Those
        # that wait in Ray's while replicas start have their deadline in the handle.
        max_ongoing_requests=flags.queue,
        max_queued_requests=flags.queue,
        health_check_period_s=1.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=flags.drain_s,
        logging_config=quiet,
        max_constructor_retry_count=3,
        **count,
    ).bind(flags, about, rule.window_s)
    if not http:
        return replicas
    from .front import Front

    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * flags.queue * rule.most,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=flags.drain_s,
        logging_config=quiet,
    )
    return front.bind(replicas, about, flags)
