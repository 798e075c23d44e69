"""Seals: how a checkpoint that was damaged on disk is told from a sound one.

Orbax writes a checkpoint under a temporary name and renames it when it is complete, so
a run that is killed leaves no half of one. It does not see what happens to the files
later: a bit flipped in an array's file is read as another number. A seal is a file
beside the data with the length and CRC-32 of every file, made before the renaming, so
that every checkpoint has one; reading compares first.
"""

import json
import os
import zlib
from pathlib import Path

_SEAL = "seal.json"
# Orbax writes these between the seal and the renaming: times, and a mark of the end.
_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


def seal(directory: Path) -> None:
    """Write down the length and checksum of every file below `directory`.

    Raises:
      OSError: if the seal cannot be written, as on a full disk.
    """
    files = {str(path.relative_to(directory)): _sum(path) for path in _files(directory)}
    temporary = directory / (_SEAL + ".tmp")
    with temporary.open("w") as file:
        json.dump(files, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / _SEAL)


def damage(directory: Path, *, contents: bool = True) -> str | None:
    """What is wrong with the files below `directory`, in words; None if nothing is.

    Args:
      directory: of one checkpoint.
      contents: whether to read all files and compare checksums; lengths only if not.
    """
    try:
        expected = json.loads((directory / _SEAL).read_text())
        for name, (length, checksum) in expected.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            found = path.stat().st_size
            if found != length:
                return f"{name} has {found} bytes, expected {length}"
            if contents and _sum(path)[1] != checksum:
                return f"the content of {name} has changed (checksum)"
    except FileNotFoundError:
        return f"{_SEAL} is missing"
    except (ValueError, TypeError, AttributeError, OSError) as error:
        return f"{_SEAL} is not readable: {error}"
    return None


def _files(directory: Path) -> list[Path]:
    later = {directory / name for name in (*_WRITTEN_LATER, _SEAL, _SEAL + ".tmp")}
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in paths if path not in later)


def _sum(path: Path) -> list[int]:
    """Length in bytes and CRC-32, read a megabyte at a time."""
    length, checksum = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            length += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return [length, checksum]
