"""Work folders of stages that were killed and never run again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ralm.artifacts.collect import collect_garbage
from ralm.artifacts.lock import only_one
from ralm.artifacts.store import lock_file


@pytest.fixture
def work(ralm_home: Path) -> Path:
    """A work folder that was touched two days ago."""
    folder = ralm_home / "store" / ".work" / "ab12"
    folder.mkdir(parents=True)
    (folder / "part-00000.parquet").write_text("half")
    two_days_ago = time.time() - 2 * 86400
    os.utime(folder, (two_days_ago, two_days_ago))
    return folder


def test_what_was_left_is_removed_with_the_garbage(work: Path) -> None:
    collect_garbage(roots=[], keep_days=3, is_dry_run=False)
    assert work.exists()
    collect_garbage(roots=[], keep_days=1, is_dry_run=True)
    assert work.exists()
    collect_garbage(roots=[], keep_days=1, is_dry_run=False)
    assert not work.exists()


def test_what_is_being_made_stays(work: Path) -> None:
    with only_one(lock_file("ab12"), "making ab12"):
        collect_garbage(roots=[], keep_days=0, is_dry_run=False)
    assert (work / "part-00000.parquet").exists()
