"""Archives that want to harm: nothing of them reaches the disk, and each is refused by name."""

from __future__ import annotations

import io
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from ralm.errors import DataError
from ralm.question_sets.archives import read_members

CSV = re.compile(r"(?:.*/)?[a-z]+\.csv")


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def plain(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def contents(path: Path, **limits: int) -> dict[str, bytes]:
    return {name: stream.read() for name, stream in read_members(path, CSV, **limits)}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_wanted_members_of_a_tar(tmp_path: Path, mode: str) -> None:
    members = (plain("data/a.csv", b"one"), plain("data/._a.csv"), plain("data/a.txt"), plain("b.csv", b"two"))
    assert contents(write_tar(tmp_path / "a.tar", *members, mode=mode)) == {"data/a.csv": b"one", "b.csv": b"two"}


def test_wanted_members_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("data/", b"")
        packed.writestr("data/a.csv", b"one")
        packed.writestr("data/a.txt", b"two")
    assert contents(tmp_path / "a.zip") == {"data/a.csv": b"one"}


@pytest.mark.parametrize("name", ["../../evil.csv", "/etc/evil.csv", "data/../../evil.csv", "..\\evil.csv"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner" / "deep"
    folder.mkdir(parents=True)
    tar = write_tar(folder / "a.tar", plain(name))
    with pytest.raises(DataError, match=r"a\.tar: .*evil\.csv' leads out of the archive"):
        contents(tar)
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        packed.writestr(name, b"x")
    with pytest.raises(DataError, match="leads out of the archive"):
        contents(folder / "a.zip")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.tar", "a.zip"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    tar = write_tar(tmp_path / "a.tar", link("data/a.csv", "/etc/passwd", kind))
    with pytest.raises(DataError, match=r"data/a\.csv: expected a plain file, found a link or a device"):
        contents(tar)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("a.csv")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match=r"a\.csv: expected a plain file"):
        contents(tmp_path / "a.zip")


def test_members_that_unpack_to_too_much_are_refused(tmp_path: Path) -> None:
    bomb = write_tar(tmp_path / "a.tar", plain("a.csv", b"\0" * 1_000_000), mode="w:gz")
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"a\.csv: expected at most 1000 bytes, found 1000000"):
        contents(bomb, max_bytes=1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.csv", b"\0" * 1_000_000)
    with pytest.raises(DataError, match="expected at most 1000 bytes"):
        contents(tmp_path / "a.zip", max_bytes=1000)


def test_a_zip_that_lies_about_its_size_gives_no_more_than_it_said(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.csv", b"\0" * 1_000_000)
    raw = path.read_bytes().replace((1_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.zip: a\.csv: damaged"):
        contents(path, max_bytes=1000)


@pytest.mark.parametrize("cut", [10, 200, 600])
def test_a_truncated_archive_is_an_error(tmp_path: Path, cut: int) -> None:
    content = bytes(range(256)) * 64
    path = write_tar(tmp_path / "a.tar", plain("a.csv", content), mode="w:gz")
    path.write_bytes(path.read_bytes()[:cut] if cut < 600 else path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.tar: (no readable tar or zip archive|a\.csv: damaged)"):
        contents(path)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("question,A,B,C,D,A\n")
    with pytest.raises(DataError, match=r"a\.tar: no readable"):
        contents(tmp_path / "a.tar")
