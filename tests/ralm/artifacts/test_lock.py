from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from ralm.artifacts.lock import if_free, only_one


def hold(path: str, told: Connection) -> None:
    with only_one(Path(path), "testing"):
        told.send("held")
        told.recv()


def test_a_lock_is_free_once_its_holder_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    here, there = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(str(path), there))
    holder.start()
    assert here.recv() == "held"
    with if_free(path) as is_held:
        assert not is_held
    holder.kill()
    holder.join()
    with if_free(path) as is_held:
        assert is_held
        with if_free(path) as is_held_again:
            assert not is_held_again
