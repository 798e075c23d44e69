"""The code of `docs/frameworks.md`, one section a framework."""

import pathlib
import re
from typing import Any

import numpy as np

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"


def run(section: str) -> dict[str, Any]:
    """Runs the Python blocks of a section in their order; returns their names."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
    assert found is not None, f"{DOCUMENT.name} has no section {section}"
    blocks = re.findall(r"```python\n(.*?)```", found[1], re.DOTALL)
    assert blocks, f"section {section} has no code"
    names: dict[str, Any] = {"__name__": f"frameworks_{section.lower()}"}
    for block in blocks:
        exec(compile(block, f"{DOCUMENT.name}, {section}", "exec"), names)
    return names


def noise(like: Any, seed: int = 0) -> np.ndarray:
    """Random numbers between 0.1 and 0.5 in the shape of an array."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.5, np.shape(like)).astype(np.float32)
