"""Neural differential equations, with Equinox modules and the solvers of Diffrax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_equinox

WIDTH, TIMES = 64, jnp.linspace(0.0, 1.0, 5)


def field(inputs: int, outputs: int, seed: int) -> Any:
    """Three dense layers, with a bounded output."""
    return load("equinox").nn.MLP(
        inputs,
        outputs,
        WIDTH,
        2,
        activation=jnp.tanh,
        final_activation=jnp.tanh,
        key=jax.random.key(seed),
    )


def ordinary(adjoint: str) -> Network:
    """The time derivative is a perceptron; the step size is adaptive."""
    diffrax = load("diffrax")

    def solve(model: Any, start: jax.Array) -> jax.Array:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, model: model(y)),
            diffrax.Tsit5(),
            t0=0.0,
            t1=1.0,
            dt0=0.1,
            y0=start,
            args=model,
            saveat=diffrax.SaveAt(ts=TIMES),
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
            adjoint=getattr(diffrax, adjoint)(),
        ).ys

    return from_equinox(field(4, 4, 0), solve, image(4))


def latent() -> Network:
    """An ODE of the network's own width, and a dense layer on its states."""
    diffrax, nn = load("diffrax"), load("equinox").nn
    keys = jax.random.split(jax.random.key(1))

    def solve(models: Any, start: jax.Array) -> jax.Array:
        encoder, model, decoder = models
        states = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: model(y)),
            diffrax.Heun(),
            t0=0.0,
            t1=1.0,
            dt0=0.1,
            y0=encoder(start),
            saveat=diffrax.SaveAt(ts=TIMES),
        ).ys
        return jax.vmap(decoder)(states)

    models = (
        nn.Linear(4, WIDTH, key=keys[0]),
        field(WIDTH, WIDTH, 0),
        nn.Linear(WIDTH, 3, key=keys[1]),
    )
    return from_equinox(models, solve, image(4))


def controlled() -> Network:
    """A controlled equation: the derivative is a matrix times that of a spline."""
    diffrax, nn = load("diffrax"), load("equinox").nn
    keys, channels = jax.random.split(jax.random.key(1)), 4

    def solve(models: Any, data: jax.Array) -> jax.Array:
        encoder, model, decoder = models
        curve = diffrax.CubicInterpolation(
            TIMES, diffrax.backward_hermite_coefficients(TIMES, data)
        )
        state = diffrax.diffeqsolve(
            diffrax.ControlTerm(
                lambda t, y, args: model(y).reshape(-1, channels), curve
            ).to_ode(),
            diffrax.Tsit5(),
            t0=0.0,
            t1=1.0,
            dt0=0.1,
            y0=encoder(data[0]),
        ).ys
        return decoder(state[-1])

    models = (
        nn.Linear(channels, WIDTH, key=keys[0]),
        field(WIDTH, WIDTH * channels, 0),
        nn.Linear(WIDTH, 3, key=keys[1]),
    )
    return from_equinox(models, solve, image(5, channels))


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(
        name=name, package="diffrax", module="diffrax", build=build, **settings
    )


FAMILIES = (
    _family("neural ODE", lambda: ordinary("RecursiveCheckpointAdjoint")),
    _family("neural ODE (direct)", lambda: ordinary("DirectAdjoint")),
    _family("neural ODE (backsolve)", lambda: ordinary("BacksolveAdjoint")),
    _family("latent ODE", latent),
    _family("neural CDE", controlled),
)
