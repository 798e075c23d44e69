"""The layout holds: imports point one way, the import is light, the face documented."""

import ast
import graphlib
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mslice_jax"

# A module may import those of its own row and of the rows above.
ROWS = (
    {"rates", "patterns", "compilation"},
    {"dims", "source"},
    {"unify", "growth"},
    {"rules"},
    {"counts"},
    {"analysis"},
    {"plan"},
    {"narrow", "flops"},
    {"norms"},
    {"functions"},
    {"program"},
    {"checks", "fit", "agreement"},
    {"run"},
    {"sliceable", "module", "nnx_module"},  # net.module makes what holds the other
    {"report", "calibration", "importance"},
    {"nn", "models", "schedules", "data"},
    {"train", "profile", "plots"},
    {"serve"},
)
# These know less than their place would allow: they are of use without the rest.
ONLY = {
    "source": set(),
    "patterns": set(),
    "schedules": {"rates"},
    "data": set(),
    "models": set(),
    "nn": {"rates"},
    "plots": {"rates"},
}
MAY_USE_JAX_EXTEND = {"rules", "counts", "analysis", "narrow"}


def module_name(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def statements(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """All nodes, but for what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not into_functions:
            continue
        yield node
        yield from statements(node, into_functions)


def imports(name: str, *, into_functions: bool) -> Iterator[str]:
    """Full names of the modules that a module imports."""
    file = MODULES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in statements(tree, into_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, [*above, base]))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES or base in ("jax", "") else base


def row(part: str) -> int:
    for index, names in enumerate(ROWS):
        if part in names:
            return index
    raise AssertionError(f"mslice_jax/{part} is new: give it a place in ROWS")


def part_of(name: str) -> str:
    """The part of the package a module belongs to: mslice_jax.rules.shape -> rules."""
    return (name.split(".") + [""])[1]


@pytest.mark.parametrize("name", [n for n in MODULES if n != "mslice_jax"])
def test_imports_point_one_way(name):
    part = part_of(name)
    allowed = {other for names in ROWS[: row(part) + 1] for other in names}
    allowed = ONLY.get(part, allowed) | {part}
    for target in imports(name, into_functions=True):
        package = target.split(".")[0]
        assert package not in ("experiments", "tests"), f"{name} imports {target}"
        if package == "mslice_jax":
            assert target != package, f"{name} imports the public face; name the module"
            assert part_of(target) in allowed, f"{name} imports {target}"


def test_no_import_goes_round():
    graph = {
        name: {t for t in imports(name, into_functions=False) if t in MODULES}
        for name in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


@pytest.mark.parametrize("name", MODULES)
def test_few_modules_know_jax_from_within(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= set(imports(name, into_functions=True))
    assert not [u for u in used if u.startswith("jax._src")]
    if part_of(name) not in MAY_USE_JAX_EXTEND:
        assert not [u for u in used if u.startswith("jax.extend")]


def test_import_is_light():
    # Flax itself imports some; what counts is what mslice_jax adds to it.
    script = """
import sys
import flax.linen, flax.nnx, jax, optax
before = set(sys.modules)
import mslice_jax
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"sklearn", "matplotlib", "tensorflow", "tensorflow_datasets", "orbax"}
    heavy |= {"rich", "tyro", "PIL", "array_record", "torch", "grain"}
    added = set(run.stdout.split())
    assert "mslice_jax" in added
    assert not added & heavy


def public_names() -> list[str]:
    """What __init__.py imports from within, by the name it gives."""
    tree = ast.parse(MODULES["mslice_jax"].read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in froms for alias in node.names]


@pytest.mark.parametrize("name", public_names())
def test_public_name_has_a_docstring(name):
    value = getattr(importlib.import_module("mslice_jax"), name)
    if inspect.ismodule(value) or callable(value):
        doc = value.__doc__ or ""
        # A dataclass without one gets its signature.
        assert doc.strip(), f"{name} has no docstring"
        assert not doc.startswith(f"{name}("), f"{name} has no docstring"


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_in_the_readme(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{name}\b", text), f"README.md does not mention {name}"
