"""The pages of `docs/`: their code runs, their names and numbers are right.

`sphinx-build -W docs site` (extra "docs") builds the site; these tests need no site.
"""

import ast
import dataclasses
import datetime
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
from typing import Any

import pytest

from experiments.benchmarks.result import save

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")}

# These have their own tests: tests/frameworks, test_readme.py, test_pods.py.
RUN_ELSEWHERE = {"frameworks", "training", "pods"}


def module_of_docs(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shown = module_of_docs("shown")
WITH_CODE = {name for name, text in PAGES.items() if shown.blocks(text)}


@pytest.mark.parametrize("name", sorted(WITH_CODE - RUN_ELSEWHERE))
def test_code_of_a_page_runs_and_prints_the_shown_output(name):
    for block, printed in shown.run(name, PAGES[name]):
        assert without_lines(printed) == without_lines(block["shown"] or ""), (
            f"{block['code']}\nprints something else: python docs/shown.py "
            f"docs/{name}.md writes it onto the page"
        )


def without_lines(text: str) -> str:
    """The text without line numbers, which change with every edit of a file."""
    return re.sub(r"\.py:\d+", ".py", text.strip("\n"))


# -- every public name has a page

MODULES = (
    "mslice_jax",
    "mslice_jax.nn",
    "mslice_jax.schedules",
    "mslice_jax.train",
    "mslice_jax.data",
    "mslice_jax.models",
    "mslice_jax.models.import_torch",
    "mslice_jax.models.vit_nnx",
    "mslice_jax.profile",
    "mslice_jax.plots",
    "mslice_jax.serve",
    "mslice_jax.serve.ray",
)


def public_names(module: str) -> list[str]:
    """Full names: those in `__all__`, or imported from within, or defined there."""
    imported = importlib.import_module(module)
    if hasattr(imported, "__all__"):
        names = list(imported.__all__)
    else:
        tree = ast.parse(inspect.getsource(imported))
        kinds = (ast.ImportFrom,) if hasattr(imported, "__path__") else ()
        names = [
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, kinds)
            for alias in node.names
        ]
        names += [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
    shown = [name for name in names if not name.startswith("_")]
    modules = [n for n in shown if inspect.ismodule(getattr(imported, n))]
    new = {f"{module}.{name}" for name in modules} - set(MODULES)
    assert not new, f"public modules without a page: {new}; add them to MODULES here"
    return [f"{module}.{name}" for name in shown if name not in modules]


def documented_names() -> list[str]:
    """Names that the pages in docs/api give to autodoc."""
    found = []
    for page in sorted((DOCS / "api").glob("*.md")):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            directive = re.match(r"\.\. (currentmodule|auto\w+):: (\S+)", line)
            if directive is None:
                continue
            kind, name = directive.groups()
            if kind == "currentmodule":
                module = name
            elif kind != "automodule":
                found.append(f"{module}.{name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_page(module):
    names = public_names(module)
    assert names
    missing = set(names) - set(documented_names())
    assert not missing, f"no page in docs/api has {sorted(missing)}"


def test_pages_name_existing_objects_once():
    names = documented_names()
    assert len(names) == len(set(names))
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


# -- numbers come from files


tables = module_of_docs("tables")
RESULTS = {file.stem: file for file in (DOCS / "results").glob("*.json")}
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*|(?<![\w.])\.\d+")


def numbers(text: str) -> set[float]:
    return {float(number.replace(",", "")) for number in NUMBER.findall(text)}


def log_entry(heading: str) -> str:
    log = (ROOT / "experiments" / "LOG.md").read_text(encoding="utf-8")
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", log, re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"experiments/LOG.md has no entry {heading!r}"
    return found[1]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_names_its_source(name):
    result = json.loads(RESULTS[name].read_text(encoding="utf-8"))
    assert {"date", "device", "command", "rows"} <= result.keys()
    shown = "\n".join(tables.result_lines(name))
    assert result["date"] in shown and result["command"] in shown
    if "log" not in result:  # written by a benchmark
        return
    assert result["log"].startswith(result["date"])
    entry = numbers(log_entry(result["log"]))
    for row in result["rows"]:
        assert len(row) == len(result["columns"]), row
        for cell in row[1:]:
            unknown = numbers(str(cell)) - entry
            assert not unknown, f"{unknown} of {row} are not in that entry of the log"


def test_every_result_is_on_a_page_and_every_table_has_a_result():
    asked = set()
    for text in PAGES.values():
        asked |= set(re.findall(r"^```\{result\} (\S+)$", text, re.MULTILINE))
    assert asked == set(RESULTS)


MEASURED = re.compile(
    r"\d\s?(%|per cent|ms\b|µs|us\b|s\b|seconds|minutes|hours|[GT]?FLOP|images per|"
    r"MiB|GiB|MB|GB|points|times as|times faster|x faster)"
)
# Made from results or rules by a program, or from files outside of docs/.
MADE = {"coverage", "primitives", "log", "changelog", "contributing"}
# Names waiting times of schedulers and JAX: settings, not measurements.
OF_OTHERS = {"pods"}


@pytest.mark.parametrize("name", sorted(PAGES.keys() - MADE - OF_OTHERS))
def test_no_measured_number_is_typed(name):
    prose = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.DOTALL | re.MULTILINE)
    for line in prose.splitlines():
        found = MEASURED.search(re.sub(r"`[^`]*`", "", line))
        assert found is None, f"{line!r}: put the number into docs/results"


# -- flags

# Of train.py in nusdbsystem/model-slicing, commit e8421df.
ORIGINAL_FLAGS = set(
    """
--exp_name --net_type --groups --depth --arg1 --sr_list --sr_train_prob
--sr_scheduler_type --sr_rand_num --epoch --start_epoch --batch_size -b --momentum
--weight_decay --wd --lr --cosine --warmup --lr_multiplier --warmup_epoch --resume
--resume_best --checkpoint_dir --workers --data_dir --log_dir --dataset --no_augment
--log_freq
""".split()  # noqa: SIM905
)


RECIPES = (
    "cifar_resnet",
    "cifar_vgg",
    "cifar_speedrun",
    "imagenet",
    "vit_cifar",
    "language_model",
)


def recipe_flags(recipe: str) -> set[str]:
    kind: Any = importlib.import_module(f"experiments.{recipe}").RECIPE.kind
    fields = dataclasses.fields(kind.settings)
    names = [field.name.replace("_", "-") for field in fields]
    switches = {f"--no-{field.name}" for field in fields if field.type is bool}
    return {f"--{name}" for name in names} | switches


def test_every_flag_of_the_original_has_a_row_with_existing_flags():
    _, _, table = PAGES["pytorch"].partition("## The flags")
    table = table.partition("The example of its README")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    theirs = {flag for row in rows for flag in re.findall(r"`(-[\w-]+)`", row[0])}
    assert theirs == {*ORIGINAL_FLAGS, "--group"}
    ours = {flag for row in rows for flag in re.findall(r"`(--[\w-]+)", row[1])}
    known = recipe_flags("cifar_resnet") | recipe_flags("imagenet")
    assert ours and not ours - known


def test_commands_name_existing_flags():
    fenced = "\n".join(
        re.findall(r"^```bash\n(.*?)^```", "\n".join(PAGES.values()), re.DOTALL | re.M)
    )
    commands = re.findall(
        rf"experiments\.({'|'.join(RECIPES)})\b((?:[^\n\\]|\\\n)*)", fenced
    )
    assert len(commands) > 4
    for recipe, command in commands:
        used = set(re.findall(r"(?<!\S)--[\w-]+", command))
        assert not used - recipe_flags(recipe), command


def test_the_table_of_flags_has_all_of_them():
    def shown(*names: str) -> set[str]:
        lines = "\n".join(line for name in names for line in tables.flag_lines(name))
        return set(re.findall(r"^\| `(--[\w-]+)`", lines, re.MULTILINE))

    images = ("Training", "ImageSettings")
    for recipe, classes in {
        "cifar_resnet": (*images, "Settings"),
        "imagenet": (*images, "ImageNetSettings"),
        "vit_cifar": (*images, "VitSettings"),
        "cifar_speedrun": (*images, "SpeedSettings"),
        "language_model": ("Training", "TextSettings"),
    }.items():
        own = {flag for flag in recipe_flags(recipe) if not flag.startswith("--no-")}
        assert shown(*classes) == own
        assert all(f"```{{flags}} {name}" in PAGES["recipes"] for name in classes)


def test_a_table_aligns_numbers_and_keeps_their_decimals():
    lines = tables.markdown(["a", "b"], [["x", 38.3], ["y|z", 1234.25]])
    assert lines == [
        "| a | b |",
        "|---|---:|",
        "| x | 38.30 |",
        "| y/z | 1,234.25 |",
    ]


def test_a_file_of_a_benchmark_is_a_result(tmp_path, monkeypatch):
    rows = [{"network": "dense", "ratio": 0.5}, {"network": "LSTM", "ratio": 1.25}]
    save(tmp_path / "ours.json", {"rows": rows, "jax": "0.10", "device": "cpu"})
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table, _, dense, lstm, *_, made, _ = tables.result_lines("ours")
    assert table == "| network | ratio |"
    assert (dense, lstm) == ("| dense | 0.50 |", "| LSTM | 1.25 |")
    today = datetime.date.today().isoformat()
    assert made.startswith(f"*{today}, cpu, jax 0.10.* `python ")
