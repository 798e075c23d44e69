"""Files of a disk as data: tokens, and the type that the extension tells."""

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

UNREADABLE = 0.01  # the share of files above which something is wrong with the folder


@dataclasses.dataclass(frozen=True)
class Files:
    """What was found.

    Attributes:
      inputs: (n, tokens), all different.
      labels: (n,), the number of the type that the extension tells.
      unreadable: how many files could not be read, and were left out.
    """

    inputs: np.ndarray
    labels: np.ndarray
    unreadable: int


def collect(
    folders: Sequence[Path],
    types: Sequence[str],
    by_extension: Mapping[str, str],
    read: Callable[[Path], np.ndarray | None],
    *,
    per_type: int,
    at_most: int | None = None,
    seed: int = 0,
) -> Files:
    """Reads files beneath folders, of each type so many, drawn at random.

    Links are not followed, files of unknown extensions not opened, and of files with
    the same tokens the first counts.

    Args:
      folders: where to look, with all that is in them.
      types: the names of the types.
      by_extension: the type of an extension, without its dot.
      read: path -> tokens (t,), or None for a file that tells nothing.
      per_type: how many files of a type are taken at most.
      at_most: how many files are taken in all; each type gives the same share.
      seed: of the draw.

    Raises:
      FileNotFoundError: for a folder that is not there.
      ValueError: if nothing is found, or more than 1 % of the files cannot be read.
    """
    paths: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder of files; got {folder}.")
        for place, inner, names in os.walk(folder):
            inner.sort()
            for name in sorted(names):
                _, _, extension = name.rpartition(".")
                kind = by_extension.get(extension) or by_extension.get(
                    extension.lower()
                )
                if kind is not None and extension != name:
                    paths.setdefault(kind, []).append(Path(place, name))
    rng = np.random.default_rng(seed)
    number = {name: i for i, name in enumerate(types)}
    found: list[tuple[np.ndarray, int]] = []
    seen: set[bytes] = set()
    tried = unreadable = 0
    for kind in sorted(paths):
        of_kind = 0
        for i in rng.permutation(len(paths[kind])):
            if of_kind == per_type:
                break
            try:
                if not stat.S_ISREG(paths[kind][i].lstat().st_mode):
                    continue
                tried += 1
                tokens = read(paths[kind][i])
            except OSError:
                unreadable += 1
                continue
            if tokens is not None and tokens.tobytes() not in seen:
                seen.add(tokens.tobytes())
                found.append((tokens, number[kind]))
                of_kind += 1
    if unreadable > UNREADABLE * tried:
        raise ValueError(
            f"{unreadable} of {tried} files in {', '.join(map(str, folders))} cannot "
            "be read. Choose folders of your own with --files."
        )
    if not found:
        raise ValueError(
            f"no file of a known type in {', '.join(map(str, folders))}; extensions "
            f"are {', '.join(sorted(by_extension)[:8])}, ..."
        )
    if at_most is not None and at_most < len(found):
        keep = rng.permutation(len(found))[:at_most]
        found = [found[i] for i in keep]
    inputs, labels = zip(*found, strict=True)
    return Files(np.stack(inputs), np.array(labels), unreadable)
