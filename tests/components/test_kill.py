"""kill -9 at many moments of each stage, then the same command again: it ends, with the bytes of an undisturbed run.

A moment is the n-th file operation under the store or the output folder, so that the kills fall on all phases: locking,
building, checkpoints, hashing, publishing, handing over. This file is also the program that runs the commands: a fresh
process that forks one child a command, so that PyTorch is imported once.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = 3
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod"}
TRAIN = {"num_steps": 4, "batch_size": 2, "num_passages": 2, "num_retrieved": 3, "checkpoint_every_steps": 1}
EVALUATE = {"num_passages": 2, "recall_at": [1, 5]}


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file but the timings."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "timings.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run(words: list[str], home: Path, output: Path, kill_at: int = 0) -> tuple[int, int]:
    """A command in a child; it kills itself at its `kill_at`-th file operation.

    Returns:
        Exit code (-9 when killed), and the number of file operations of a child that came to its end.
    """
    count_file = home.parent / "operations"
    child = os.fork()
    if child == 0:
        os.environ["RALM_HOME"] = str(home)
        done = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal done
            if event in FILE_EVENTS and str(arguments[0]).startswith((str(home), str(output))):
                done += 1
                if done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        from pipelines.cli import main

        code = main(words)
        count_file.write_text(str(done))
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(count_file.read_text()) if not kill_at else 0


def kill_and_run_again(words: list[str], folder: Path) -> list[dict[str, Any]]:
    """What was left behind after each kill and after the same command again; the first is the undisturbed run."""
    home, output = folder / "home", folder / "output"
    folder.mkdir()
    command = [*words, str(output)]
    code, operations = run(command, home, output)
    found: list[dict[str, Any]] = [{"kill_at": 0, "codes": [code], "content": content(output)}]
    for number in range(1, KILLS + 1):
        shutil.rmtree(home)
        shutil.rmtree(output)
        kill_at = operations * number // (KILLS + 1) + 1
        killed, _ = run(command, home, output, kill_at)
        looked_finished = (output / "manifest.json").exists()
        after_kill = content(output) if looked_finished else {}
        again, _ = run(command, home, output)
        left = [str(path) for path in [*home.glob("store/.work/*"), *home.glob("checkpoints/*/*")]]
        moment = {"kill_at": kill_at, "codes": [killed, again], "left": left, "content": content(output)}
        found.append({**moment, "after_kill": after_kill})
    return found


def commands(places: dict[str, str]) -> dict[str, list[str]]:
    """The command of each stage, without its output folder."""

    def flags(*names: str) -> list[str]:
        return [word for name in names for word in (f"--{name}", places[name])]

    dump = str(ROOT / "tests" / "data" / "dump.xml")
    given = flags("passages", "index", "model", "questions")
    predictions = ["--before", places["predictions"], "--after", places["predictions"]]
    return {
        "download": ["download", "--source", dump, "--passages"],
        "embed": ["embed", *flags("passages", "model"), "--config.block-passages", "7", "--embeddings"],
        "index": ["index", *flags("embeddings"), "--index"],
        "train": ["train", *given, "--config", json.dumps(TRAIN), "--trained"],
        "evaluate": ["evaluate", *given, "--config", json.dumps(EVALUATE), "--predictions"],
        "report": ["report", *predictions, *flags("passages"), "--config.resamples", "100", "--report"],
    }


@pytest.fixture(scope="module")
def places(
    toy_passages: str,
    toy_index: str,
    tiny_model: str,
    toy_questions_artifact: str,
    session_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    from pipelines.cli import main

    folder = tmp_path_factory.mktemp("inputs")
    found = {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}
    found |= {name: str(folder / name) for name in ("embeddings", "predictions")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RALM_HOME", str(session_home))
        flags = ["--passages", toy_passages, "--model", tiny_model]
        assert main(["embed", *flags, "--embeddings", found["embeddings"]]) == 0
        flags += ["--index", toy_index, "--questions", toy_questions_artifact, "--config", json.dumps(EVALUATE)]
        assert main(["evaluate", *flags, "--predictions", found["predictions"]]) == 0
    return found


@pytest.fixture(scope="module")
def outcomes(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Of each stage: what the undisturbed run and each killed one left behind."""
    folder = tmp_path_factory.mktemp("kill")
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(commands(places)), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "RALM_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "ralm: error" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["download", "embed", "index", "train", "evaluate", "report"])
def test_killed_at_any_moment_and_run_again(stage: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    whole, *killed = outcomes[stage]
    assert whole["codes"] == [0]
    assert "manifest.json" in whole["content"]
    assert len(killed) == KILLS
    for moment in killed:
        assert moment["codes"] == [-signal.SIGKILL, 0], moment
        assert moment["content"] == whole["content"], moment["kill_at"]
        assert moment["after_kill"] in ({}, whole["content"]), moment["kill_at"]
        assert moment["left"] == [], moment["kill_at"]


if __name__ == "__main__":
    for module in ("models.bert.modeling_bert", "models.t5.modeling_t5", "tokenization_utils_tokenizers"):
        importlib.import_module(f"transformers.{module}")  # what children need is imported once, here
    for module in ("components.evaluate.stage", "components.report.stage", "components.train.stage", "jsonargparse"):
        importlib.import_module(module)
    stages = json.loads(sys.argv[1])
    results = {stage: kill_and_run_again(words, Path(sys.argv[2], stage)) for stage, words in stages.items()}
    print(json.dumps(results))
