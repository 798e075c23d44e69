"""The layout: one-way imports, a light import, documented public names."""

import ast
import graphlib
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mslice_jax"

# A package may import from its own row and from the rows above.
ROOMS = (
    {"core"},  # the method, without frameworks and platforms
    {"adapters", "cpu"},  # networks of each framework; fast forms on CPU
    {"sliceable"},
    {"upgrade"},
    {"importance"},
    {"report", "calibrate", "reorder", "storage"},
    {"nn", "models", "schedules", "data"},
    {"train", "profile", "plots", "choose", "search"},
    {"serve"},
)
# So do the modules of a package that has an order.
ORDER = {
    "core": (
        {"errors", "paths", "patterns", "source", "streams"},
        {"rates", "axes"},
        {"solver", "growth"},
        {"rules"},
        {"counts", "groups", "reading", "forms", "summed"},
        {"analysis", "settings"},
        {"plan", "evaluate", "flops", "operations", "call", "function"},
        {"tracing", "layers"},
        {"agreement"},
        {"definition"},
        {"checks"},
        {"run", "define"},
        {"kept", "activations"},
    ),
    "adapters": (
        {"norms", "base"},
        {"modules"},
        {"linen", "nnx"},
        {"functions"},
    ),
    "storage": (
        {"archive"},
        {"arrays"},
        {"plain", "manifest", "names", "batch", "answers"},
        {"exported", "programs"},
        {"onnx", "saved_model"},
        {"saving", "shipping"},
    ),
    "cpu": (
        {
            "barriers",
            "choice",
            "columns",
            "convolution",
            "dense",
            "depthwise",
            "equations",
            "few_channels",
            "grouped",
            "loop_parts",
            "loops",
            "memory",
            "padding",
            "pooling",
            "products",
            "sums",
            "spread",
            "volumes",
            "windows",
            "winograd",
            "work",
        },
        {"table"},
        {"compilation"},
    ),
    "search": (
        {"space", "result"},
        {"costs", "masks", "journal"},
        {"scores", "methods"},
        {"choosing"},
    ),
    "serve": (
        {
            "answers",
            "batches",
            "scaling",
            "shared_core",
            "simulation",
            "slow_down",
            "stages",
            "traces",
        },
        {"latency", "recorded"},
        {"policy"},
        {"mixed", "baselines", "simulator", "waiting"},
        {"elastic", "pictures"},
        {"compilations", "saved", "signature"},
        {"weights", "compiled", "narrow_trees", "reading", "rows"},
        {"offer", "independence", "candidates", "stage_networks", "runs", "endings"},
        {"loaded", "measuring", "ranking", "stage_programs"},
        {"executor", "cascade", "same_model"},
        {"engine", "tensors"},
        {"protocol", "metrics", "bodies", "access", "behind", "recent", "attempts"},
        {"live", "demo", "options", "triton"},
        {"app", "starting", "settings"},
        {"replica"},
        {"handle"},
        {"front"},
        {"ray"},
        {"__main__"},
    ),
}
# These may import less than their row: they are of use without the rest.
ONLY = {
    "schedules": {"core.rates", "core.errors", "core.streams"},
    "data": {"core.streams"},
    "models": {"adapters.norms"},
    "nn": {"core.rates", "core.errors"},
    "plots": {"core.rates"},
}
# These are beside the networks of their package, and convert weights.
BESIDE = {
    "models.torch_export": {"core", "adapters", "sliceable"},
    "models.import_torch": {"core", "sliceable", "upgrade", "storage", "train"},
}
# Nothing in these packages may name these frameworks.
FOREIGN = {"core": {"flax", "optax", "orbax"}, "cpu": {"flax", "optax", "orbax"}}
MAY_USE_JAX_EXTEND = {"core", "cpu"}


def module_name(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def statements(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """All nodes, except those for type checkers alone."""
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


def room_of(name: str) -> str:
    """The package of a module: mslice_jax.core.rules.shape -> core."""
    return (name.split(".") + [""])[1]


def above(part: str, rows: Sequence[set[str]], where: str) -> set[str]:
    """The names in the rows down to that of `part`."""
    for index, names in enumerate(rows):
        if part in names:
            return set().union(*rows[: index + 1])
    raise AssertionError(f"{where}/{part} is new: give it a place in the table")


def may_import(name: str) -> set[str]:
    """The modules and packages, below mslice_jax, that a module may import."""
    room, *inner = name.split(".")[1:]
    if (own := name.removeprefix("mslice_jax.")) in BESIDE:
        return BESIDE[own] | ONLY[room] | {room}
    if room in ONLY:
        return ONLY[room] | {room}
    if room not in ORDER or not inner:
        return above(room, ROOMS, "mslice_jax")
    rooms = above(room, ROOMS, "mslice_jax") - {room}
    return rooms | {
        f"{room}.{part}" for part in above(inner[0], ORDER[room], f"mslice_jax/{room}")
    }


@pytest.mark.parametrize("name", [n for n in MODULES if n != "mslice_jax"])
def test_imports_point_one_way(name):
    allowed = {f"mslice_jax.{part}" for part in may_import(name)}
    foreign = FOREIGN.get(room_of(name), set())
    for target in imports(name, into_functions=True):
        package = target.split(".")[0]
        assert package not in {"experiments", "tests", *foreign}, f"imports {target}"
        if package == "mslice_jax":
            assert target != package, f"{name} imports the public face; name the module"
            assert any(
                target == part or target.startswith(f"{part}.") for part in allowed
            ), f"{name} imports {target}"


def test_few_files_are_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_no_circular_imports():
    graph = {
        name: {t for t in imports(name, into_functions=False) if t in MODULES}
        for name in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


@pytest.mark.parametrize("name", MODULES)
def test_few_modules_import_jax_internals(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= set(imports(name, into_functions=True))
    assert not [u for u in used if u.startswith("jax._src")]
    if room_of(name) not in MAY_USE_JAX_EXTEND:
        assert not [u for u in used if u.startswith("jax.extend")]


@pytest.mark.parametrize(("private", "files"), [("grain._src", {"data.shared_memory"})])
def test_a_private_name_of_another_package_has_its_own_file(private, files):
    found = {
        name.removeprefix("mslice_jax.")
        for name, file in MODULES.items()
        if private in file.read_text(encoding="utf-8")
    }
    assert found == files


def test_the_wheel_holds_the_package_alone():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = build["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["mslice_jax"]}


@pytest.mark.parametrize(
    ("modules", "may_bring"),
    [
        ("mslice_jax", set()),
        # Reading and training import a library when they need it.
        ("mslice_jax.train, mslice_jax.data, mslice_jax.profile", {"orbax"}),
    ],
)
def test_import_is_light(modules, may_bring):
    # Flax itself imports some; only the additions of mslice_jax count.
    script = f"""
import sys
import flax.linen, flax.nnx, jax, optax
before = set(sys.modules)
import {modules}
print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
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
    assert not added & (heavy - may_bring)


def public_names() -> list[str]:
    """Names that __init__.py imports from within."""
    tree = ast.parse(MODULES["mslice_jax"].read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in froms for alias in node.names]
    return [name for name in names if name not in ("TYPE_CHECKING", "Any")]


def test_public_names_are_those_of_all():
    face = importlib.import_module("mslice_jax")
    assert sorted(face.__all__) == sorted({*public_names(), "__version__"})
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError, match="has no attribute 'upgraed'"):
        face.upgraed  # noqa: B018


def test_optional_packages_are_imported_lazily():
    script = """
import sys
import mslice_jax as ms
rooms = ("data", "models", "nn", "profile", "schedules", "serve", "train")
print(*(r for r in rooms if f"mslice_jax.{r}" in sys.modules))
print(*(getattr(ms, r).__name__ for r in rooms))
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = run.stdout.splitlines()
    assert before == ""
    assert after == " ".join(
        f"mslice_jax.{room}"
        for room in ("data", "models", "nn", "profile", "schedules", "serve", "train")
    )


def test_the_version_is_that_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = importlib.import_module("mslice_jax").__version__
    assert f'version = "{version}"' in text
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", public_names())
def test_public_name_has_a_docstring(name):
    value = getattr(importlib.import_module("mslice_jax"), name)
    if inspect.ismodule(value) or callable(value):
        doc = value.__doc__ or ""
        # A dataclass without a docstring gets its signature.
        assert doc.strip(), f"{name} has no docstring"
        assert not doc.startswith(f"{name}("), f"{name} has no docstring"


@pytest.mark.parametrize("name", public_names())
def test_public_name_is_in_the_readme(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{name}\b", text), f"README.md does not mention {name}"
