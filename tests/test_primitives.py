"""Every primitive of the installed JAX has a rule or a reason, and is on the page."""

import importlib
import importlib.util
import pkgutil

import jax
import pytest
from jax.extend.core import Primitive

from experiments.primitive_table import ELSEWHERE, PAGE, page
from mslice_jax.core.rules import FIXED, RULES, base

# Modules with primitives that a function can trace to; Pallas' own are in kernels.
HOMES = (
    "ad_checkpoint", "ad_util", "buffer_callback", "callback", "checkify",
    "compute_on", "core", "cudnn", "custom_batching", "custom_derivatives",
    "custom_partitioning", "debugging", "export._export", "export.shape_poly", "ffi",
    "hijax", "interpreters", "lax", "pallas.core", "pallas.mpmd", "pallas.pallas_call",
    "pjit", "random", "shard_alike", "shard_map", "state", "tpu_custom_call",
    "xla_metadata",
)  # fmt: skip


def modules():
    """The modules of `HOMES` in this version of JAX, with all their names."""
    for home in HOMES:
        name = f"jax._src.{home}"
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        yield module
        for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
            yield importlib.import_module(info.name)


@pytest.fixture(scope="module")
def installed():
    found = {}
    for module in [jax.lax, jax.lax.linalg, *modules()]:
        for value in vars(module).values():
            if isinstance(value, Primitive):
                found[value.name] = module.__name__
    return found


def test_the_search_finds_primitives(installed):
    """From all parts of JAX that a network can use; otherwise the next test is void."""
    corners = {"dot_general", "scan", "cholesky", "shard_map", "psum", "random_bits"}
    corners |= {"custom_vjp_call", "pure_callback", "debug_print", "pallas_call", "jit"}
    assert corners <= set(installed)
    assert len(installed) > 200


def test_every_primitive_is_accounted_for(installed):
    missing = sorted(
        f"{name} ({home})"
        for name, home in installed.items()
        if name not in RULES and name not in ELSEWHERE
    )
    assert not missing, (
        "these primitives of the installed JAX have no rule. Write one, or say why not "
        f"in rules/fixed.py (FIXED) or experiments/primitive_table.py: {missing}"
    )


def test_nothing_is_listed_twice():
    assert not set(ELSEWHERE) & set(RULES)
    assert set(FIXED) <= set(RULES)
    before = RULES["tanh"]
    with pytest.raises(ValueError, match="'tanh' has two rules"):
        base.rule("tanh")(lambda t: [])
    assert RULES["tanh"] is before


def test_the_page_equals_the_code():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "docs/primitives.md is not what the rules say: run "
        "`python -m experiments.primitive_table`"
    )


def test_every_reason_and_picture_is_one_line():
    for name, rule in RULES.items():
        assert 5 < len(rule.picture) < 100, name
        assert "|" not in rule.picture, name
