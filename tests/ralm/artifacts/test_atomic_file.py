from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ralm.artifacts.files import atomic_file


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "manifest.json") as file:
        file.write(b"{}")
    assert caught.value.filename == str(tmp_path / "manifest.json")
    assert list(tmp_path.iterdir()) == []
