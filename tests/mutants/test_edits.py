"""What counts as a slip: every kind once, and what is left out."""

import pathlib

import pytest

from tests.mutants.edits import edits

ROOT = pathlib.Path(__file__).resolve().parents[2]


def after(line: str, before: str = "") -> set[str]:
    """The mutants of a line, by what the line is then."""
    source = f"{before}{line}\n"
    number = before.count("\n") + 1
    found = [edit for edit in edits(source) if edit.start[0] == number]
    return {edit.apply(source).splitlines()[number - 1].strip() for edit in found}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = a < b", {"x = (a <= b)"}),
        ("x = a in b", {"x = (a not in b)"}),
        ("x = a * b", {"x = (a // b)"}),
        ("x = a + 7", {"x = (a - 7)", "x = a + (8)"}),
        ("x = a and not b", {"x = (a or not b)", "x = a and (b)"}),
        ("x = True", {"x = (False)"}),
        ("x = a if b else c", {"x = (a)", "x = (c)"}),
        ("x = [a for a in b if a]", {"x = ([a for a in b])"}),
        ("x = min(a)", {"x = (max(a))"}),
        (
            "x = all(a for a in b if a)",
            {"x = (any((a for a in b if a)))", "x = all(a for a in b)"},
        ),
        (
            "x = f(a, b, c=d)",
            {
                "x = (f(b, c=d))",
                "x = (f(a, c=d))",
                "x = (f(a, b))",
                "x = (f(b, a, c=d))",
            },
        ),
        ("x.a = b", {"pass"}),
        ("x += b", {"pass"}),
        ("x.append(b)", {"pass", "(x.append())"}),
        ("raise ValueError(a + b)", {"pass"}),
    ],
)
def test_slips_of_a_line(line, expected):
    assert after(line) == expected


def test_slips_within_functions():
    assert after("return a", "def f():\n    ") == {"return None"}
    assert after("if a: pass", "") == {"if True: pass", "if False: pass"}
    assert after("continue", "for a in b:\n    ") == {"break"}


@pytest.mark.parametrize(
    "line",
    [
        '"""1 + 1"""',
        "x: a[1] = b",
        "def f(x: a[1] = b): pass",
        "def __repr__(): a()",
        "x = f'{a + 1}'",
        "return",
        "x = b",
    ],
)
def test_left_out(line):
    assert after(line) == set()


def test_every_mutant_is_a_program():
    source = (ROOT / "mslice_jax/core/rates.py").read_text(encoding="utf-8")
    found = edits(source)
    assert len(found) > 50
    for edit in found:
        compile(edit.apply(source), "mutant", "exec")
