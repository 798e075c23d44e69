"""What the manifests of all files have: who wrote them, and which arrays there are."""

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

import jax

from ..core.paths import Path, path_names
from . import archive
from .arrays import describe


def head(version: int) -> dict[str, Any]:
    """The format and its version, and what wrote the file.

    Args:
      version: the first version of the format whose readers can read the file.
    """
    return {
        "format": archive.FORMAT,
        "format_version": version,
        "made_by": f"mslice_jax {importlib.metadata.version('mslice_jax')}",
        "jax": jax.__version__,
    }


def entries(paths: Sequence[Path], leaves: Sequence[Any]) -> list[dict[str, Any]]:
    """For each array its path, the member of the zip that has it, and its type."""
    names = path_names(paths)
    # Names that a zip could write in another way, or not at all, are left out of it.
    plain_names = all(re.fullmatch(r"[\w./+ -]+", name) for name in names)
    return [
        {
            "path": list(path),
            "file": f"arrays/{name if plain_names else i}.npy",
            **describe(x),
        }
        for i, (path, name, x) in enumerate(zip(paths, names, leaves, strict=True))
    ]
