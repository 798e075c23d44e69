"""How XLA compiles in tests: quickly, for a program here runs once or twice.

This does not import JAX, whose environment has to be set before.
"""

import importlib.metadata
import os

_JAXLIB = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))

EMITTERS = "xla_cpu_use_fusion_emitters"
HAS_EMITTERS = _JAXLIB < (0, 11)
"""Whether they can be left out: a third of the time without them (jaxlib 0.10)."""

FLAGS: dict[str, bool | int] = {
    "xla_cpu_parallel_codegen_split_count": 1,
    **({EMITTERS: False} if HAS_EMITTERS else {}),
}
"""Of the compiler on CPU, beside `JAX_DISABLE_MOST_OPTIMIZATIONS`."""

QUICK: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **FLAGS,
}
"""All of it as `compiler_options` of one program, in `.ci/nightly` too."""

AS_FOR_USERS: dict[str, bool | int] = {EMITTERS: True} if HAS_EMITTERS else {}
"""`compiler_options` that put back what `FLAGS` leave out."""


def xla_flags(devices: int, given: str = "") -> str:
    """`XLA_FLAGS` of a process with so many devices; those that are given win."""
    quick = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "true"
    flags = {
        "xla_force_host_platform_device_count": devices,
        **(FLAGS if quick else {}),
    }
    more = [f"--{name}={value}" for name, value in flags.items() if name not in given]
    return " ".join([given, *more]).strip()
