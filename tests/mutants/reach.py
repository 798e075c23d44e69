"""Which test runs which lines: found once, by running the tests under a trace."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest


class Reach:
    """A plugin of pytest: the seconds of each test that passes, and the lines it runs.

    The lines of a file are the bits of an integer, in hexadecimal digits.
    """

    def __init__(self, package: Path, out: Path) -> None:
        """Looks at the files of a package, and writes to `out`."""
        self.package, self.out = f"{package.resolve()}{os.sep}", out
        self.lines: dict[str, set[int]] = {}
        self.tests: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(self.package):
            return None
        seen = self.lines.setdefault(path.removeprefix(self.package), set())

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            seen.add(frame.f_lineno)
            return line

        return line(frame, event, arg)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Runs one test, what it needs set up included, under the trace."""
        self.lines = {}
        began = time.process_time()
        threading.settrace(self._call)
        sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # pyright: ignore[reportArgumentType]
            masks = {
                path: f"{sum(1 << line for line in lines):x}"
                for path, lines in self.lines.items()
            }
            seconds = time.process_time() - began
            self.tests[item.nodeid] = {"seconds": seconds, "lines": masks}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes what did not pass: it notices nothing."""
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Writes what was seen."""
        passed = {k: v for k, v in self.tests.items() if k not in self.failed}
        self.out.write_text(json.dumps(passed), encoding="utf-8")


def main() -> int:
    """Runs pytest: OUT PACKAGE ARGUMENTS..."""
    out, package, *arguments = sys.argv[1:]
    return pytest.main(arguments, [Reach(Path(package), Path(out))])


if __name__ == "__main__":
    sys.exit(main())
