"""What processes exchange: uneven rows, numbers by name, requests; and the ways a run of several can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ralm.distributed import ALONE, LOST_CONNECTION, World, join_world, naming_lost_peers
from ralm.errors import ConfigError, WorkerError
from ralm.launch import _describe, run_workers
from ralm.log import is_distributed_worker

PROGRAM = """
import json, sys, torch
from pathlib import Path
from ralm.distributed import join_world, leave_world
world = join_world(torch.device("cpu"))
rank = world.rank
beside = world.beside()
sent = [torch.full(((rank + to) % 3,), 10 * rank + to) for to in range(3)]
found = {
    "gather": [part.tolist() for part in world.gather(torch.full(([2, 0, 1][rank], 2), rank))],
    "exchange": [part.tolist() for part in beside.exchange(sent)],
    "json": world.gather_json({"value": 0.1 * rank, "text": "é" * rank}),
    "sum": world.sum({"shared": 0.1, f"own{rank}": 1.0} if rank else {}),
    "any": [world.any(rank == 2), world.any(False)],
    "all": [world.all(rank < 2), world.all(True)],
}
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
world.barrier()
leave_world()
"""


def test_what_processes_exchange(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "program.py", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    for rank, each in enumerate(found):
        assert each["gather"] == [[[0, 0], [0, 0]], [], [[2, 2]]]
        assert each["exchange"] == [[10 * other + rank] * ((rank + other) % 3) for other in range(3)]
        assert each["json"] == [{"value": 0.1 * other, "text": "é" * other} for other in range(3)]
        assert each["sum"] == {"shared": 0.2, "own1": 1.0, "own2": 1.0}
        assert each["any"] == [True, False]
        assert each["all"] == [False, True]


def test_one_process_exchanges_nothing() -> None:
    rows = torch.ones(2, 3)
    assert ALONE.gather(rows)[0] is rows
    assert ALONE.exchange([rows])[0] is rows
    assert ALONE.sum({"a": 1.5}) == {"a": 1.5}
    assert (ALONE.any(True), ALONE.any(False), ALONE.all(True), ALONE.all(False)) == (True, False, True, False)
    assert ALONE.beside() is ALONE
    ALONE.barrier()


@pytest.mark.parametrize("count", [0, 1, 5, 64, 101])
@pytest.mark.parametrize("multiple", [1, 32])
def test_parts_cover_all_rows_once(count: int, multiple: int) -> None:
    parts = [World(rank, 4).part(count, multiple) for rank in range(4)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    assert all(part.start % multiple == 0 or part.start == count for part in parts)


def test_a_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not is_distributed_worker()
    assert join_world(torch.device("cpu")) is ALONE
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert join_world(torch.device("cpu")) is ALONE, "set by something that starts no workers"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR: not set, though RANK is"):
        join_world(torch.device("cpu"))


def test_a_lost_connection_is_told_and_other_errors_are_not_hidden() -> None:
    with pytest.raises(WorkerError, match="process 1 of 2 lost its connection"), naming_lost_peers(World(1, 2)):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), naming_lost_peers(World(1, 2)):
        raise RuntimeError("shapes do not fit")


def failure(exit_code: int) -> SimpleNamespace:
    return SimpleNamespace(exitcode=exit_code)


def test_the_worker_that_went_down_by_itself_is_named() -> None:
    failures = {0: LOST_CONNECTION, 1: -signal.SIGABRT, 2: -signal.SIGKILL, 3: -signal.SIGTERM}
    told = _describe(SimpleNamespace(failures={rank: failure(code) for rank, code in failures.items()}), 4)
    assert isinstance(told, WorkerError)
    assert "process 2 of 4 was killed by SIGKILL" in str(told)
    assert told.exit_code == 1
    told = _describe(SimpleNamespace(failures={0: failure(LOST_CONNECTION), 1: failure(2)}), 2)
    assert isinstance(told, WorkerError)
    assert told.exit_code == 2
    told = _describe(SimpleNamespace(failures={0: failure(130)}), 2)
    assert isinstance(told, KeyboardInterrupt)


def test_several_nodes_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RALM_RENDEZVOUS", raising=False)
    with pytest.raises(ConfigError, match="RALM_RENDEZVOUS=HOST:PORT"):
        run_workers("components.train.worker", {}, num_processes=1, nodes=2)
