"""Several processes do what one does: the same passages, the same losses, the same model, also after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.numpy import load_file

from components.train.config import TrainConfig
from components.train.stage import LOG
from ralm.artifacts.store import plain_config
from ralm.artifacts.tables import read_table
from ralm.device import has_fast_bf16
from tests.components.train import watched_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
needs_bf16_units = pytest.mark.xfail(
    not has_fast_bf16(torch.device("cpu")),
    raises=AssertionError,
    reason="seen without bf16 units: a loss of 0.052 for 0.041, 26 % where 25 are allowed; not explained yet",
)
WORKER = Path(__file__).with_name("watched_worker.py")
CONFIG = TrainConfig(
    mode="joint",
    num_steps=20,
    batch_size=5,  # does not divide by the numbers of processes, and with four of them leaves one question for most
    micro_batch_size=2,
    num_passages=3,
    num_retrieved=4,
    warmup_steps=2,
    learning_rate=3e-4,
    retriever_learning_rate=3e-4,
    temperature_score=0.1,  # at 0.01 the last digit of a score shows in the loss a hundred times larger
    dropout=0.0,
    precision="fp32",
)


@pytest.fixture
def inputs(toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str) -> dict[str, str]:
    return {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "RALM_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}


def run(inputs: dict[str, str], folder: Path, config: TrainConfig, num_processes: int) -> list[dict[str, Any]]:
    """Train under torchrun, or here if it is one process, in a store of its own; returns the log."""
    folder.mkdir()
    job = {"arguments": {**inputs, "trained": str(folder / "trained")}, "config": plain_config(config)}
    job = json.loads(json.dumps({**job, "seen": str(folder)}))
    if num_processes == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RALM_HOME", str(folder / "home"))
            watched_worker.work(job, patch)
        return read_log(folder / "trained")
    command = [str(WORKER), json.dumps(job)]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
    done = subprocess.run(
        [sys.executable, *launcher, *command], env=environment(folder / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return read_log(folder / "trained")


def read_log(trained: Path) -> list[dict[str, Any]]:
    return read_table(str(trained / LOG), "training_log/2").to_pylist()


def retrieved(folder: Path, num_processes: int) -> list[list[list[int]]]:
    """Ids of the passages of each update's questions, of all processes together."""
    parts = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]
    return [[found for part in step for found in part] for step in zip(*parts, strict=True)]


def assert_same_losses(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        for name in ("reader_loss", "retriever_loss"):
            assert row[name] == pytest.approx(other[name], abs=tolerance), f"update {row['step']}, {name}"


def weights(trained: Path) -> dict[str, Any]:
    files = sorted(trained.rglob("*.safetensors"))
    return {f"{path.relative_to(trained)}:{name}": value for path in files for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def alone(
    request: pytest.FixtureRequest,
    toy_passages: str,
    toy_index: str,
    tiny_model: str,
    toy_questions_artifact: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]]]:
    """One process with the same batches."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    inputs = {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}
    return folder, run(inputs, folder, CONFIG, 1)


@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("sharding", ["none", "gradients"])
def test_the_same_passages_and_losses_as_one_process(
    inputs: dict[str, str],
    tmp_path: Path,
    alone: tuple[Path, list[dict[str, Any]]],
    num_processes: int,
    sharding: str,
) -> None:
    folder, expected = alone
    config = dataclasses.replace(CONFIG, sharding=sharding)
    log = run(inputs, tmp_path / "together", config, num_processes)
    assert len(log) == 20
    assert_same_losses(log, expected)
    assert retrieved(tmp_path / "together", num_processes) == retrieved(folder, 1)
    ours, theirs = weights(tmp_path / "together" / "trained"), weights(folder / "trained")
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[name] - theirs[name]).max() for name in theirs) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "query_side"},
        {"mode": "reader_only"},
        {"mode": "joint", "freeze_reader": True},
        {
            "mode": "joint",
            "objective": "emdr2",
            "emdr2_level": "token",
            "freeze_retriever_steps": 2,
            # To an untrained reader all passages are alike: gradients cancel to 1e-5 and less, rounding is 1e-3 of
            # that, and with the usual 1e-6 AdamW takes as large steps by it as by any gradient. The higher rate makes
            # up for the epsilon, so that what the retriever learned shows in the losses.
            "adam_epsilon": 1e-4,
            "retriever_learning_rate": 3e-3,
        },
        {"mode": "joint", "gradient_checkpointing": True, "score_pass": "eval", "attention_statistics": True},
        {"mode": "joint", "num_reranked": 6, "refresh_schedule": "3", "evaluate_every_steps": 2},
        {"mode": "query_side", "retrieve_ahead": True, "batch_size": 2},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_way_to_train_with_split_weights(inputs: dict[str, str], tmp_path: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, num_steps=5, max_evaluate_questions=5, **changes)
    alone = run(inputs, tmp_path / "alone", config, 1)
    together = run(inputs, tmp_path / "together", dataclasses.replace(config, sharding="gradients"), 3)
    assert_same_losses(together, alone)
    assert [row["index_overlap"] for row in together] == pytest.approx([row["index_overlap"] for row in alone])
    assert retrieved(tmp_path / "together", 3) == retrieved(tmp_path / "alone", 1)
    found, expected = (evaluations(tmp_path / name / "trained") for name in ("together", "alone"))
    assert len(found) == len(expected) == (2 if config.evaluate_every_steps else 0)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        pytest.param("bf16", 0.25, marks=needs_bf16_units),
        ("fp16", 0.02),
    ],
)
def test_low_precision_with_split_weights_and_a_process_without_questions(
    inputs: dict[str, str], tmp_path: Path, precision: str, tolerance: float
) -> None:
    """fp16 begins with a loss scale that overflows here: all processes compute the update again.

    A score's error is the number format's divided by the temperature. Only the first update is compared with fp32:
    after it two passages that are about equally good can change places, and then the losses are of other passages.
    """
    config = dataclasses.replace(CONFIG, num_steps=3, batch_size=2, temperature_score=0.1)
    exact = run(inputs, tmp_path / "exact", dataclasses.replace(config, num_steps=1), 1)
    alone = run(inputs, tmp_path / "alone", dataclasses.replace(config, precision=precision), 1)
    low = dataclasses.replace(config, sharding="gradients", precision=precision)
    together = run(inputs, tmp_path / "together", low, 3)
    assert retrieved(tmp_path / "together", 3)[0] == retrieved(tmp_path / "exact", 1)[0]
    if precision == "fp16":
        assert retrieved(tmp_path / "together", 3) == retrieved(tmp_path / "alone", 1)
    for row, other in [(together[0], exact[0]), *zip(together, alone, strict=True)]:
        assert row["reader_loss"] == pytest.approx(other["reader_loss"], rel=0.01)
        assert row["retriever_loss"] == pytest.approx(other["retriever_loss"], rel=tolerance)


def evaluations(trained: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((trained / "manifest.json").read_text())["details"]["evaluations"]
    return found


def test_a_question_does_not_get_its_own_source_in_any_process(
    toy_passages: str, toy_index: str, tiny_model: str, task_questions: Any, tmp_path: Path
) -> None:
    """How deep a search has to go differs from question to question, and the processes have to go equally deep."""
    inputs = {
        "passages": toy_passages,
        "index": toy_index,
        "model": tiny_model,
        "questions": task_questions("section"),
    }
    config = dataclasses.replace(CONFIG, num_steps=4, batch_size=5, num_passages=8, num_retrieved=8)
    alone = run(inputs, tmp_path / "alone", config, 1)
    assert_same_losses(run(inputs, tmp_path / "together", config, 3), alone)
    assert retrieved(tmp_path / "together", 3) == retrieved(tmp_path / "alone", 1)


def start(inputs: dict[str, str], folder: Path, config: TrainConfig, num_processes: int) -> subprocess.Popen[str]:
    """The command as a user gives it; it starts its workers itself."""
    command = [sys.executable, "-m", "components.train", "--trained", str(folder / "trained")]
    for name, place in inputs.items():
        command += [f"--{name}", place]
    command += ["--num-processes", str(num_processes), "--config", json.dumps(plain_config(config))]
    return subprocess.Popen(
        command, env=environment(folder / "home"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(home: Path, step: int, process: subprocess.Popen[str]) -> None:
    while not list(home.glob(f"checkpoints/*/step-{step:08d}")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)


def workers(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The worker processes by rank."""
    return {
        int(child.environ()["RANK"]): child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RANK" in child.environ()
    }


def test_a_killed_worker_is_named_and_the_run_goes_on_from_its_checkpoint(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, num_steps=40, checkpoint_every_steps=5, dropout=0.1, sharding="gradients")
    (tmp_path / "whole").mkdir()
    whole = start(inputs, tmp_path / "whole", config, 4)
    assert whole.wait() == 0, whole.stderr.read() if whole.stderr else ""

    folder = tmp_path / "killed"
    folder.mkdir()
    process = start(inputs, folder, config, 4)
    wait_for_checkpoint(folder / "home", 10, process)
    killed_at = time.monotonic()
    workers(process)[2].send_signal(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert process.returncode == 1
    assert "ralm: error: process 2 of 4 was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert not (folder / "trained" / "manifest.json").exists()
    last = sorted((folder / "home").glob("checkpoints/*/step-*"))[-1]
    assert int(last.name[5:]) < 40

    again = start(inputs, folder, config, 4)
    _, stderr = again.communicate(timeout=200)
    assert again.returncode == 0, stderr
    assert "going on after update" in stderr
    ours, theirs = weights(folder / "trained"), weights(tmp_path / "whole" / "trained")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert read_log(folder / "trained") == read_log(tmp_path / "whole" / "trained")


def test_a_stopped_run_goes_on_with_another_number_of_processes(inputs: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, num_steps=40, checkpoint_every_steps=2, sharding="gradients", learning_rate=1e-4
    )
    process = start(inputs, tmp_path, config, 4)
    wait_for_checkpoint(tmp_path / "home", 4, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    second = start(inputs, tmp_path, dataclasses.replace(config, sharding="none"), 2)
    wait_for_checkpoint(tmp_path / "home", 20, second)
    second.send_signal(signal.SIGTERM)
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 130, stderr
    third = start(inputs, tmp_path, config, 1)
    _, stderr = third.communicate(timeout=200)
    assert third.returncode == 0, stderr
    alone = run(inputs, tmp_path / "alone", config, 1)
    assert_same_losses(read_log(tmp_path / "trained"), alone, 1e-4)


def test_a_worker_that_dies_in_a_refresh_leaves_the_index_before(inputs: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_steps=400, checkpoint_every_steps=1000, refresh_schedule="2")
    process = start(inputs, tmp_path, config, 3)
    while not list((tmp_path / "home").glob("checkpoints/*/index-*")):
        assert process.poll() is None
        time.sleep(0.05)
    workers(process)[1].send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (folder,) = (tmp_path / "home" / "checkpoints").iterdir()
    newest = json.loads((sorted(folder.glob("step-*"))[-1] / "state.json").read_text())
    assert newest["index_step"] == 0 or (folder / f"index-{newest['index_step']:08d}" / "manifest.json").exists()
    assert not list(folder.glob("index-*/.*"))
    again = start(inputs, tmp_path, config, 3)
    wait_for_checkpoint(tmp_path / "home", newest["step"] + 6, again)
    again.send_signal(signal.SIGTERM)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 130, stderr
    assert "going on after update" in stderr


def test_what_is_there_is_not_trained_again(inputs: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_steps=2)
    for _ in range(2):
        process = start(inputs, tmp_path, config, 2)
        stdout, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr
    assert "reused" in stderr
    assert "starting" not in stderr


def test_bad_input_is_found_before_any_worker_starts(inputs: dict[str, str], tmp_path: Path) -> None:
    process = start({**inputs, "questions": "nowhere"}, tmp_path, CONFIG, 2)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.count("ralm: error:") == 1
    assert "starting" not in stderr
