"""Archives of arrays (``.npz``) that are written whole or not at all, and read without trust.

`numpy.load` allocates what a header claims before it looks at what is there.  `read` asks first: a member's header, the
size that the zip directory gives and the bytes that are really there must agree, and memory grows only with the bytes
that have been read.  Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy

from .limits import require_memory

__all__ = ["ArchiveError", "atomic_file", "read", "read_exactly", "remove_leftovers", "write"]

CHUNK = 1 << 20  # bytes asked for at a time: the most that a false claim can cost
TEMPORARY = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}\.tmp")


class ArchiveError(ValueError):
    """A file is not an archive of plain arrays, or is damaged."""


class Readable(Protocol):
    """Anything with ``read(size)``."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


def read_exactly(stream: Readable, size: int) -> bytearray:
    """Read `size` bytes, or fewer where the stream ends before.

    Memory follows the bytes that arrive, not `size`, which may be a number from an untrusted header.

    Raises
    ------
    MemoryError
        If more arrive than memory is free: a small compressed file can hold very many.

    Examples
    --------
    >>> import io
    >>> read_exactly(io.BytesIO(b"abc"), 10**12)
    bytearray(b'abc')
    """
    data = bytearray()
    while len(data) < size:
        if not len(data) % (16 * CHUNK):
            require_memory("what is to be read", 2 * len(data))  # it may move when it grows
        chunk = stream.read(min(CHUNK, size - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Read every array of an ``.npz`` archive.

    Parameters
    ----------
    path : path
        An archive from `write`, `numpy.savez` or `numpy.savez_compressed`.

    Returns
    -------
    dict of str to ndarray
        Writable arrays of booleans, integers, floats, complex numbers or text.

    Raises
    ------
    ArchiveError
        In one line, naming the file, when it cannot be read, is truncated or damaged, claims more data than it holds,
        or holds anything but plain arrays (objects would have to be unpickled).
    """
    path = Path(path)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        # A FIFO or a device would block or never end.
        if not path.is_file():
            raise ArchiveError("no such file")
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # an odd header makes NumPy's parser warn before it raises
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in arrays:
                    raise ArchiveError(f"holds {name!r} twice")
                arrays[name] = _read_member(archive, info)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None
    except MemoryError as error:
        raise ArchiveError(f"{path}: holds more than memory does ({error})") from None
    except OSError as error:
        raise ArchiveError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise all sorts of things on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArchiveError(f"{path}: damaged, or not an .npz archive ({reason})") from None
    return arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{info.filename!r} is compressed in a way that NumPy does not write")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(member)
        else:
            raise ArchiveError(f"{info.filename!r} has the unknown .npy version {version}")
        if dtype.kind not in "biufcU" or dtype.itemsize == 0:
            raise ArchiveError(f"{info.filename!r} holds {dtype}: only plain arrays are read, nothing is unpickled")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != info.file_size - member.tell():
            raise ArchiveError(f"{info.filename!r} claims shape {shape} of {dtype}, which is not the size of its data")
        data = read_exactly(member, size)
    if len(data) != size:
        raise ArchiveError(f"{info.filename!r} ends after {len(data)} of {size} bytes")
    if size == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays to an ``.npz`` archive that `numpy.load` reads, atomically.

    The bytes depend on the arrays alone: equal arrays make equal files.

    Parameters
    ----------
    path : path
        The archive; an existing one is replaced in one step.
    arrays : mapping of str to ndarray

    Raises
    ------
    ValueError
        When an array holds Python objects.
    OSError
        When the file cannot be written; an existing one is then untouched.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.npz"), {"x": np.arange(3)})
    ...     read(Path(folder, "a.npz"))
    {'x': array([0, 1, 2])}
    """
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, whatever the clock says
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                npy.write_array(member, np.asanyarray(array), allow_pickle=False)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when it is complete and on disk.

    Whoever reads `path` sees the old content or the new, never a part, even when the process or the machine dies.  On
    an exception the new content is dropped.  A killed process may leave a temporary file: see `remove_leftovers`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Delete temporary files that killed processes left in `folder`, and return how many.

    Only safe while no other process writes there.
    """
    count = 0
    for path in Path(folder).iterdir():
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
            count += 1
    return count
