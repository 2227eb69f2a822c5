"""Members of tar and zip archives, read as streams: nothing is unpacked to the disk."""

from __future__ import annotations

import contextlib
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ralm.errors import DataError

MAX_MEMBER_BYTES = 8 << 30
"""The largest official member, TriviaQA's unfiltered training questions, has about 2.5 GB."""
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError, RuntimeError)


def read_members(
    archive: Path, wanted: re.Pattern[str], *, max_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of the members whose whole name matches; a stream is valid until the next one is asked for.

    Args:
        archive: a tar (plain or compressed) or a zip.
        wanted: of the names; others are passed over unread.
        max_bytes: allowed in one member. A member is also cut off there if it lies about its size.

    Raises:
        DataError: no archive, a damaged one, a name that leads out of the archive, a wanted member that is a link or
            a device, or one that is too large.
    """
    try:
        yield from (_zip_members if zipfile.is_zipfile(archive) else _tar_members)(archive, wanted, max_bytes)
    except _BROKEN as error:
        raise DataError(f"{archive}: no readable tar or zip archive: {error}") from error


def _tar_members(archive: Path, wanted: re.Pattern[str], max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if not _is_wanted(archive, member.name, wanted) or member.isdir():
                continue
            if not member.isfile():
                raise DataError(f"{archive}: {member.name}: expected a plain file, found a link or a device")
            _check_size(archive, member.name, member.size, max_bytes)
            content = tar.extractfile(member)
            assert content is not None  # a plain file has content
            yield member.name, io.BufferedReader(_Checked(content, f"{archive}: {member.name}"))


def _zip_members(archive: Path, wanted: re.Pattern[str], max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            if not _is_wanted(archive, entry.filename, wanted) or entry.is_dir():
                continue
            if (entry.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise DataError(f"{archive}: {entry.filename}: expected a plain file, found a link or a device")
            _check_size(archive, entry.filename, entry.file_size, max_bytes)
            with packed.open(entry) as content:
                yield entry.filename, io.BufferedReader(_Checked(content, f"{archive}: {entry.filename}"))


class _Checked(io.RawIOBase):
    """A member whose damage is told as such where it is read."""

    def __init__(self, content: IO[bytes], place: str) -> None:
        self._content, self._place = content, place

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._content.read(len(buffer))
        except _BROKEN as error:
            raise DataError(f"{self._place}: damaged: {error}") from error
        buffer[: len(data)] = data
        return len(data)


def _is_wanted(archive: Path, name: str, wanted: re.Pattern[str]) -> bool:
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise DataError(f"{archive}: {name!r} leads out of the archive; it is not read any further")
    is_hidden = PurePosixPath(name).name.startswith(".")  # such as the ._NAME that macOS adds
    return not is_hidden and wanted.fullmatch(name) is not None


def _check_size(archive: Path, name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DataError(f"{archive}: {name}: expected at most {max_bytes} bytes, found {size}")


@contextlib.contextmanager
def text_of(stream: IO[bytes]) -> Iterator[io.TextIOWrapper]:
    """A member as UTF-8 text; the member itself stays open, since the archive closes it."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()
