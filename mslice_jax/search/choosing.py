"""A rate for each group of axes, under a budget."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ..core.call import Call, plain_type
from ..core.rates import Rate
from ..core.run import resolve
from ..sliceable import Sliceable
from .costs import Cost, cost_of, limit_of
from .journal import Journal, digest
from .methods import evolution, greedy
from .result import Found, Point, Round
from .scores import Evaluate, Scores
from .space import Choice, Space, space_of


def search(
    net: Sliceable,
    evaluate: Evaluate,
    *inputs: Any,
    flops: float | None = None,
    parameters: float | None = None,
    latency_ms: float | None = None,
    method: Literal["greedy", "evolution"] = "greedy",
    start: Sequence[Rate] = (),
    generations: int = 20,
    population: int = 32,
    seed: int = 0,
    masks: bool | None = None,
    together: int = 1,
    repeats: int = 10,
    path: str | os.PathLike[str] | None = None,
    progress: Callable[[Round], Any] | None = None,
    call: Mapping[str, Any] | None = None,
) -> Found:
    """Chooses a declared rate for each width group, within one limit.

    "greedy" begins with the widest network, and narrows a step at a time the group that
    costs least of the score for what it saves (AutoSlim, Yu and Huang 2019).
    "evolution" mutates and crosses networks within the limit (Cai et al., ICLR 2020);
    it can begin with what the greedy search found. Either returns the best within the
    limit of all that it scored, the uniform widths among them.

    Where masks of the full network compute what slices do (no mean, norm or maximum
    along an axis that narrows; it is tried out), `evaluate` gets the full network with
    zeros, so that one program evaluates every candidate. Elsewhere it gets slices, one
    program each.

    Args:
      net: from `upgrade` or `extract`.
      evaluate: a function ``evaluate(net, rate)`` -> score, higher is better, that runs
        ``ms.slice_apply(net, x, rate)`` on examples of its own, which should neither be
        trained on nor reported on.
      *inputs: a call for which FLOPs are counted and latency is measured; by default
        FLOPs are those of the call that `upgrade` saw, as the report counts them.
      flops: *The limit.* At most so many operations of contractions.
      parameters: at most so many numbers of the parameters, as the report counts.
      latency_ms: at most so many milliseconds (the median) of the call on the default
        device. Measured are the uniform widths, what each round of "greedy" keeps, and
        the few best of a generation, a program each; other candidates are estimated
        by their FLOPs.
      method: "greedy" or "evolution".
      start: *Evolution.* Rates or mappings to begin with, such as another result's.
      generations: how often children are made.
      population: how many networks are scored each time.
      seed: of its random draws.
      masks: *Evaluation.* True insists on masks, False on slices.
      together: how many masked networks are evaluated at once, by `jax.vmap`: for
        accelerators and small networks. Above 1 `evaluate` is traced, and has to be
        one that JAX can trace.
      repeats: how often a latency is measured.
      path: of a JSON file, written after each round. A search that was stopped goes on
        with it, and finds what it would have found.
      progress: called with a `Round` after each.
      call: keywords of the call, where `inputs` are given.

    Returns:
      `Found`: the mapping, its cost and score, the uniform widths, the frontier.

    Raises:
      TypeError: if `net` is no `Sliceable`, or `evaluate` returns no number.
      ValueError: for no limit or several, a limit below the narrowest network, a score
        that is not finite, settings out of range, a file of another search.
      RateError: for norms with one set of arrays for each rate.

    Example:
      >>> import jax, jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(jnp.tanh(x @ p["w1"]) @ p["w2"]) @ p["w3"]
      >>> shapes = {"w1": (4, 16), "w2": (16, 16), "w3": (16, 3)}
      >>> p = {k: jax.random.normal(jax.random.key(0), s) for k, s in shapes.items()}
      >>> x = jnp.ones((8, 4))
      >>> net = ms.upgrade(mlp, p, x, rates=(0.25, 0.5, 1.0))
      >>> y = ms.slice_apply(net, x, 1.0)
      >>> def evaluate(net, rate):
      ...     return -jnp.square(ms.slice_apply(net, x, rate) - y).mean()
      >>> found = ms.search(net, evaluate, parameters=200)
      >>> found.mapping, found.cost
      ({'w1:1': 1.0, 'w2:1': 0.25}, 140.0)
      >>> ms.slice_apply(net, x, found.mapping).shape
      (8, 3)
    """
    if not isinstance(net, Sliceable):
        raise TypeError(f"search expects a Sliceable; got {type(net).__name__}.")
    if not callable(evaluate):
        raise TypeError(f"evaluate is a function of (net, rate); got {evaluate!r:.80}.")
    name, limit = limit_of(
        {"flops": flops, "parameters": parameters, "latency_ms": latency_ms}
    )
    if method not in ("greedy", "evolution"):
        raise ValueError(f"method is 'greedy' or 'evolution'; got {method!r}.")
    counts = {"generations": generations, "population": population, "seed": seed}
    _check({**counts, "together": together}, at_least={"generations": 0, "seed": 0})
    # A copy, so that the programs of candidates go when the search is over.
    net = Sliceable(net.variables, replace(net.definition), net.part)
    space = space_of(net)
    begin = [space.nearest(resolve(net.definition, each, net.part)) for each in start]
    settings: dict[str, Any] = {"limit": [name, limit], "method": method}
    _, arrays = Call.split(inputs, call or {})
    settings |= {"masks": masks, "inputs": [str(plain_type(x)) for x in arrays]}
    if method == "evolution":
        settings |= {**counts, "start": begin}
    journal = Journal(path, digest(net) if path is not None else "", settings)
    cost = cost_of(name, net, space, inputs, call, repeats, journal.measured)
    if limit < (least := cost.exact(space.narrowest)):
        raise ValueError(
            f"{name}={limit:g} is below the narrowest network, which takes {least:g} "
            f"(the widest takes {cost.exact(space.widest):g}). Raise it, or declare "
            "narrower rates in `upgrade`."
        )
    scores = Scores(
        net,
        space,
        evaluate,
        masks=masks,
        together=together,
        inputs=inputs,
        kwargs=call,
        journal=journal,
    )
    if method == "greedy":
        kept_each = greedy(space, cost, scores, limit)
    else:
        kept_each = evolution(space, cost, scores, limit, start=begin, **counts)
    rounds: list[Choice] = []
    try:
        scores(list(space.uniform.values()))
        for kept in kept_each:
            rounds.append(kept)
            journal.write()
            if progress is not None:
                done = (len(rounds) - 1) / max(generations, 1)
                if method == "greedy":
                    way = cost.exact(space.widest) - limit
                    gone = cost.exact(space.widest) - cost.exact(kept)
                    done = gone / way if way > 0 else 1.0
                point = _point(space, cost, scores, kept)
                progress(Round(len(rounds), min(done, 1.0), len(scores.there), point))
    finally:
        journal.write()  # also what an interrupted round knows
    return _found(space, cost, scores, (name, limit), rounds, journal.masks)


def _point(space: Space, cost: Cost, scores: Scores, choice: Choice) -> Point:
    return Point(space.mapping(choice), cost.exact(choice), scores.there[choice])


def _found(
    space: Space,
    cost: Cost,
    scores: Scores,
    limit: tuple[str, float],
    rounds: Sequence[Choice],
    masks: bool | None,
) -> Found:
    uniform = {
        rate: _point(space, cost, scores, choice)
        for rate, choice in space.uniform.items()
    }
    points = {
        choice: _point(space, cost, scores, choice)
        for choice in scores.there
        if cost.known(choice) is not None
    }
    found = Found(
        {},
        math.nan,
        math.nan,
        limit=limit,
        uniform=uniform,
        rounds=tuple(points[choice] for choice in rounds),
        seen=tuple(points.values()),
        masks=bool(masks),
    )
    best = found.within(limit[1])
    return replace(found, mapping=best.mapping, cost=best.cost, score=best.score)


def _check(counts: Mapping[str, Any], at_least: Mapping[str, int]) -> None:
    for name, count in counts.items():
        least = at_least.get(name, 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(f"{name} is an integer, {least} or more; got {count!r}.")
