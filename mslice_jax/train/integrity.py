"""Seals: how a checkpoint that was damaged on disk is told from a sound one.

Orbax writes a checkpoint under a temporary name and renames it when it is complete, so
a run that is killed leaves no half of one. It does not see what happens to the files
later: a bit flipped in an array's file is read as another number. A seal is a file
beside the data with the length and CRC-32 of every file; reading compares first.
"""

import json
import os
import zlib
from pathlib import Path

_SEAL = "seal.json"


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


def damage(directory: Path) -> str | None:
    """What is wrong with the files below `directory`, in words; None if nothing is.

    A checkpoint without a seal (the process ended between the checkpoint's renaming
    and the seal) counts as sound: it is complete, and Orbax reads it or says why not.
    """
    try:
        expected = json.loads((directory / _SEAL).read_text())
        for name, (length, checksum) in expected.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            found = _sum(path)
            if found[0] != length:
                return f"{name} has {found[0]} bytes, expected {length}"
            if found[1] != checksum:
                return f"the content of {name} has changed (checksum)"
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        return f"{_SEAL} is not readable: {error}"
    return None


def _files(directory: Path) -> list[Path]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.name.startswith(_SEAL))


def _sum(path: Path) -> list[int]:
    """Length in bytes and CRC-32, read a megabyte at a time."""
    length, checksum = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            length += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return [length, checksum]
