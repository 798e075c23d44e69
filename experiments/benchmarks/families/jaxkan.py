"""Kolmogorov-Arnold networks of jaxkan, in NNX."""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_nnx


def layers(kind: str, **sizes: Any) -> Network:
    """Four layers of a basis of functions: splines, or polynomials, or sines."""
    model = load("jaxkan.models.KAN").KAN([4, 32, 32, 32, 3], kind, sizes)
    return from_nnx(model, 2 * image(6, 4) - 1)


def model(name: str, *sizes: Any, **more: Any) -> Network:
    """Another architecture made of such layers."""
    make = getattr(load(f"jaxkan.models.{name}"), name)
    return from_nnx(make(*sizes, **more), 2 * image(6, 4) - 1)


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(name=name, package="jaxkan", module="jaxkan", build=build, **settings)


FAMILIES = (
    _family("KAN (splines)", lambda: layers("base", k=3, G=5), maskable=True),
    _family("KAN (Chebyshev)", lambda: layers("chebyshev", D=5), maskable=True),
    _family("KAN (Fourier)", lambda: layers("fourier", D=5), maskable=True),
    _family("KAN (radial)", lambda: layers("rbf", D=5), maskable=True),
    _family("KAN (sines)", lambda: layers("sine", D=5), maskable=True),
    _family("ActNet", lambda: model("ActNet", [4, 64, 64, 64, 3])),
    _family("KKAN", lambda: model("KKAN", 4, 3)),
    _family("RGA-KAN", lambda: model("RGAKAN", 4, 3, 32, 3, rff_std=1.0)),
)
