"""Which tests are run on a slip: those that run its line, the quickest first."""

from tests.mutants.__main__ import chosen
from tests.mutants.edits import edits


def lines(*numbers: int) -> dict[str, str]:
    return {"m.py": f"{sum(1 << number for number in numbers):x}"}


TESTS = {
    "a.py::slow": {"seconds": 2.0, "lines": lines(3)},
    "a.py::long": {"seconds": 9.0, "lines": lines(3, 9)},
    "b.py::other": {"seconds": 1.0, "lines": lines(9)},
    "c.py::elsewhere": {"seconds": 0.0, "lines": {}},
}


def test_the_tests_of_a_slip():
    found = {edit.lines[0]: edit for edit in edits("x = 5\ndef f():\n    y = 6\n")}
    assert chosen(TESTS, "m.py", found[3], 15) == ["a.py::slow", "a.py::long"]
    assert chosen(TESTS, "m.py", found[3], 10) == ["a.py::slow"]
    # No test runs what an import runs: those count that run the file.
    assert chosen(TESTS, "m.py", found[1], 4) == ["b.py::other", "a.py::slow"]
    assert chosen(TESTS, "other.py", found[3], 15) == []
