"""The file of a network: an uncompressed zip, written at once or not at all.

Its members are ``manifest.json``, ``arrays/*.npy`` and ``programs/*.stablehlo``: other
tools can read all of them, `numpy.load(path)` the arrays. The zip has a checksum for
every member, and its index stands at the end, so that a file which was cut short or
changed is noticed. Nothing of it is ever executed or unpickled.
"""

import contextlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

FORMAT = "mslice_jax network"
VERSION = 2
"""Of the format; it grows when files change so that older readers cannot read them.

1: a network, with its plan (`save`). 2: programs alone (`export`).
"""

IN_FOLDER = "network.mslice"
"""The file that `load` looks for in a folder."""

_MANIFEST = "manifest.json"


class StorageError(ValueError):
    """A file that is no network, or not the one that is asked for; says what to do."""


def local_path(path: Any, verb: str) -> Path:
    """The path with `~` expanded.

    Raises:
      TypeError: for what is no path.
      StorageError: for the address of a bucket or a server.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise TypeError(
            f"{verb} expects a path; got {path!r} of type {type(path).__name__}."
        ) from None
    text = os.fsdecode(text)
    if "://" in text:
        raise StorageError(
            f"{verb} expects a path on this machine; got {text!r}. The network is one "
            "file: copy it there or from there."
        )
    if not text:
        raise StorageError(f"{verb} expects a path; got an empty one.")
    return Path(text).expanduser()


class Writer:
    """Members of an archive that is being written."""

    def __init__(self, file: zipfile.ZipFile):
        self._file = file

    @contextlib.contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """A member to write to."""
        # ZipInfo without a date: the same network gives the same bytes.
        with self._file.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
            yield member

    def manifest(self, data: Any) -> None:
        """Writes the manifest."""
        text = json.dumps(data, indent=1, allow_nan=False)
        with self.member(_MANIFEST) as member:
            member.write(text.encode())


def write(path: Path, fill: Callable[[Writer], None], *, overwrite: bool) -> None:
    """Writes an archive under another name and renames it once it is on disk.

    Raises:
      FileExistsError: if there is something at the path.
      StorageError: if the file cannot be written.
    """

    def fill_file(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            fill(Writer(archive))

    write_file(path, fill_file, overwrite=overwrite)


def write_file(
    path: Path, fill: Callable[[IO[bytes]], object], *, overwrite: bool
) -> None:
    """Writes any file in the same way."""
    check_free(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        check_free(path, overwrite=overwrite)  # somebody else may have written it
        temporary.replace(path)
    except FileExistsError:
        if path.parent.is_dir():
            raise
        raise StorageError(
            f"cannot write {path}: {path.parent} is no folder. Choose another path."
        ) from None
    except OSError as error:
        what = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {what}. Nothing that was there has changed; mend "
            "that, or choose another path."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes a folder under another name and renames it once it is complete.

    Raises:
      FileExistsError: if there is something at the path.
      StorageError: if it cannot be written.
    """
    check_no_folder(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(temporary)
        check_no_folder(path)
        temporary.rename(path)
    except FileExistsError:
        raise
    except OSError as error:
        what = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {what}. Mend that, or choose another path."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_no_folder(path: Path) -> None:
    """Raises FileExistsError if something is where a folder is to be."""
    if path.exists():
        raise FileExistsError(
            f"{path} exists; choose another path for the folder, or remove it."
        )


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises FileExistsError if something is at a path that may not be replaced."""
    if path.is_dir():
        raise FileExistsError(
            f"{path} is a folder; expected the path of a file, such as "
            f"{path / IN_FOLDER}."
        )
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; choose another path, or pass overwrite=True."
        )


class Reader:
    """The members of an archive, each compared with its checksum when it is read."""

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path = path
        self._file = file

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
          StorageError: if it is missing or was changed.
        """
        try:
            return self._file.read(name)
        except KeyError:
            raise damaged(self.path, f"{name} is missing") from None
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
            raise damaged(self.path, f"{name}: {error}") from error
        except RuntimeError as error:  # how zipfile says that a member is encrypted
            raise damaged(self.path, f"{name}: {error}") from error

    def manifest(self) -> dict[str, Any]:
        """The manifest, of a format that can be read.

        Raises:
          StorageError: for another format or a later version.
        """
        if _MANIFEST not in self._file.namelist():
            raise foreign(self.path, f"it has no {_MANIFEST}")
        try:
            data = json.loads(self.read(_MANIFEST))
        except ValueError as error:
            if isinstance(error, StorageError):
                raise
            raise damaged(self.path, f"{_MANIFEST}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise foreign(self.path, f"its {_MANIFEST} does not name the format")
        version = data.get("format_version")
        if not isinstance(version, int) or version < 1:
            raise damaged(self.path, f"format_version is {version!r}")
        if version > VERSION:
            by = data.get("made_by")
            raise StorageError(
                f"{self.path} has version {version} of the format; this mslice_jax "
                f"reads versions up to {VERSION}. Update mslice_jax"
                + (f" (it was made by {by})." if isinstance(by, str) else ".")
            )
        return data


@contextlib.contextmanager
def read(path: Path) -> Iterator[Reader]:
    """An archive to read from; of a folder its `network.mslice`.

    Raises:
      FileNotFoundError: if there is none.
      StorageError: if it is something else.
    """
    if path.is_dir():
        path = path / IN_FOLDER
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}; load expects the path of a file that mslice_jax.save "
            f"wrote, or of a folder with a {IN_FOLDER}."
        )
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            raise damaged(path, "its end is missing") from None
        raise foreign(path, "it is no zip file") from None
    except (OSError, ValueError, NotImplementedError) as error:
        raise StorageError(
            f"cannot read {path}: {error}. Check the path and its permissions."
        ) from error
    with archive:
        yield Reader(path, archive)


def damaged(path: Path, what: str) -> StorageError:
    """The error for a file that is not what was written."""
    return StorageError(
        f"{path} is damaged ({what}). Copy it again, or save the network again."
    )


def foreign(path: Path, what: str) -> StorageError:
    """The error for a file of another kind."""
    return StorageError(
        f"{path} is no file of mslice_jax.save ({what}). Checkpoints of a training run "
        "are read by mslice_jax.train.Checkpoints; weights of other libraries go into "
        "mslice_jax.upgrade."
    )
