"""The README's code runs, and prints the output shown there."""

import contextlib
import io
import pathlib
import re

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def test_python_blocks_run_and_print_the_report_shown():
    text = README.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    shown = re.search(r">>> print\(ms.report\(net\)\)\n(.*?)```", text, re.DOTALL)
    assert shown is not None
    assert printed.getvalue().strip() == shown[1].strip()
    assert names["y"].shape == (8, 10)
    assert int(names["state"].step) == 3


def test_pictures_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text()):
        assert (README.parent / path).read_bytes()[:4] == b"\x89PNG", path


def test_the_code_of_training_runs():
    text = (README.parent / "docs" / "training.md").read_text()
    norms, devices, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(compile(norms, "docs/training.md", "exec"), names)
    statistics = names["net"].variables["batch_stats"]["BatchNorm_0"]
    assert set(statistics) == {"0.5", "1.0"}
    exec(compile(devices, "docs/training.md", "exec"), names)
    assert int(names["state"].step) == 1
    assert sorted(names["metrics"]) == [0.25, 1.0]
