"""The train stage on the toy corpus: what learns and what does not, resume, errors, equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.train.config import TrainConfig
from components.train.stage import LOG, train
from ralm.artifacts.files import ralm_home
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.tables import read_table
from ralm.errors import ArtifactError, ConfigError, DataError
from ralm.index.search import open_index
from ralm.model import open_model
from ralm.reader.fusion import FusionReader
from ralm.training.learner import Learner

ROOT = Path(__file__).resolve().parents[3]
CONFIG = TrainConfig(
    num_steps=4,
    batch_size=4,
    num_passages=3,
    num_retrieved=5,
    learning_rate=2e-3,
    retriever_learning_rate=1e-3,
    warmup_steps=1,
    precision="fp32",
)


@pytest.fixture
def inputs(toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str) -> dict[str, str]:
    return {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the timings."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


def trained_weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / part / "model.safetensors")


def is_changed(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, second[name]) for name, value in first.items())


def test_query_side_keeps_passage_encoder_and_index(inputs: dict[str, str], tmp_path: Path) -> None:
    before = open_model(inputs["model"])
    manifest = train(**inputs, trained=str(tmp_path / "trained"), config=CONFIG)
    after = open_model(str(tmp_path / "trained"))
    assert before.tied
    assert not after.tied
    assert digests(before.passage_encoder_folder) == digests(after.passage_encoder_folder)
    assert after.fingerprints["passage_encoder"] == before.fingerprints["passage_encoder"]
    assert after.fingerprints["question_encoder"] != before.fingerprints["question_encoder"]
    assert after.fingerprints["reader"] != before.fingerprints["reader"]
    question = trained_weights(after.folder, "retriever/question")
    assert is_changed(question, trained_weights(before.folder, "retriever/passage"))
    assert open_index(inputs["index"], passage_encoder=after.fingerprints["passage_encoder"]).num_passages == 30
    assert after.reader == dataclasses.replace(before.reader, num_passages=3)
    assert manifest.counts == {"questions": 18, "examples": 18, "steps": 4}
    log = read_table(str(tmp_path / "trained" / LOG), "training_log/2").to_pylist()
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all(row["reader_loss"] > 0 and row["retriever_loss"] >= -1e-6 for row in log)


def test_query_side_never_loads_a_second_encoder(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Learner] = []
    update = Learner.update

    def remember(self: Learner, *args: Any) -> Any:
        seen.append(self)
        return update(self, *args)

    monkeypatch.setattr(Learner, "update", remember)
    train(**inputs, trained=str(tmp_path / "trained"), config=dataclasses.replace(CONFIG, num_steps=1))
    assert seen[0].passage_encoder is None
    assert {name.partition(".")[0] for name in seen[0].weights} == {"reader", "question"}


def test_joint_training_moves_the_shared_encoder_and_stays_tied(inputs: dict[str, str], tmp_path: Path) -> None:
    before = open_model(inputs["model"])
    train(**inputs, trained=str(tmp_path / "trained"), config=dataclasses.replace(CONFIG, mode="joint"))
    after = open_model(str(tmp_path / "trained"))
    assert after.tied
    assert not (after.folder / "retriever" / "question").exists()
    assert after.fingerprints["passage_encoder"] != before.fingerprints["passage_encoder"]
    with pytest.raises(ArtifactError, match="embed and index"):
        open_index(inputs["index"], passage_encoder=after.fingerprints["passage_encoder"])


def test_joint_training_of_an_untied_model_moves_both_halves(inputs: dict[str, str], tmp_path: Path) -> None:
    train(**inputs, trained=str(tmp_path / "untied"), config=CONFIG)
    before = open_model(str(tmp_path / "untied"))
    config = dataclasses.replace(CONFIG, mode="joint", num_steps=2)
    train(**{**inputs, "model": str(tmp_path / "untied")}, trained=str(tmp_path / "trained"), config=config)
    after = open_model(str(tmp_path / "trained"))
    assert not after.tied
    for half in ("question_encoder", "passage_encoder"):
        assert after.fingerprints[half] != before.fingerprints[half]


@pytest.mark.parametrize("is_closed_book", [False, True])
def test_reader_only_copies_the_retriever(inputs: dict[str, str], tmp_path: Path, is_closed_book: bool) -> None:
    config = dataclasses.replace(CONFIG, mode="reader_only", closed_book=is_closed_book)
    train(**inputs, trained=str(tmp_path / "trained"), config=config)
    before, after = open_model(inputs["model"]), open_model(str(tmp_path / "trained"))
    assert digests(before.folder / "retriever") == digests(after.folder / "retriever")
    assert after.fingerprints["reader"] != before.fingerprints["reader"]
    log = read_table(str(tmp_path / "trained" / LOG), "training_log/2").to_pylist()
    assert all(row["retriever_loss"] is None and row["retriever_learning_rate"] is None for row in log)


def test_trained_reader_keeps_its_own_output_layer_and_dropout_rate(inputs: dict[str, str], tmp_path: Path) -> None:
    train(**inputs, trained=str(tmp_path / "trained"), config=dataclasses.replace(CONFIG, dropout=0.3))
    before, after = open_model(inputs["model"]), open_model(str(tmp_path / "trained"))
    old, new = (FusionReader.load(m.reader_folder, m.reader, device=torch.device("cpu")) for m in (before, after))
    assert not torch.equal(new.model.lm_head.weight, new.model.shared.weight)
    assert is_changed({"head": old.model.lm_head.weight}, {"head": new.model.lm_head.weight})
    assert new.model.config.dropout_rate == old.model.config.dropout_rate
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (after.reader_folder / name).read_bytes() == (before.reader_folder / name).read_bytes()


def test_a_stopped_run_ends_with_the_same_bytes(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N updates, a stop by SIGTERM, and the rest equal 2N in one go; the checkpoints are gone afterwards."""
    config = dataclasses.replace(CONFIG, num_steps=6, target_choice="random")
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home-1"))
    whole = train(**inputs, trained=str(tmp_path / "whole"), config=config)
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home-2"))
    original = Learner.update

    def stop_after_three(self: Learner, batch: object, step: int) -> dict[str, float | None]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "update", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        train(**inputs, trained=str(tmp_path / "resumed"), config=config)
    assert not (tmp_path / "resumed" / "manifest.json").exists()
    steps: list[int] = []

    def count(self: Learner, batch: object, step: int) -> dict[str, float | None]:
        steps.append(step)
        return original(self, batch, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "update", count)
    resumed = train(**inputs, trained=str(tmp_path / "resumed"), config=config)
    assert steps == [3, 4, 5]
    assert resumed.fingerprint == whole.fingerprint
    assert digests(tmp_path / "resumed") == digests(tmp_path / "whole")
    assert not list((ralm_home() / "checkpoints").rglob("*.safetensors"))


def test_reader_learns_the_training_questions(inputs: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_steps=20, dropout=0.0, learning_rate=1e-2)
    train(**inputs, trained=str(tmp_path / "trained"), config=config)
    losses = [row["reader_loss"] for row in read_table(str(tmp_path / "trained" / LOG), "training_log/2").to_pylist()]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_second_run_is_reused(inputs: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_steps=1)
    first = train(**inputs, trained=str(tmp_path / "one"), config=config)
    again = dataclasses.replace(config, checkpoint_every_steps=7)
    second = train(**inputs, trained=str(tmp_path / "two"), config=again)
    assert not first.reused
    assert second.reused
    other = train(**inputs, trained=str(tmp_path / "three"), config=dataclasses.replace(config, seed=1))
    assert other.fingerprint != first.fingerprint


def test_more_passages_than_there_are(inputs: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_passages=31, num_retrieved="auto")
    with pytest.raises(ConfigError, match=r"has 30 passages, fewer than the 31"):
        train(**inputs, trained=str(tmp_path / "trained"), config=config)
    assert not (tmp_path / "trained" / "manifest.json").exists()


def test_index_of_another_model(inputs: dict[str, str], tmp_path: Path) -> None:
    train(**inputs, trained=str(tmp_path / "joint"), config=dataclasses.replace(CONFIG, mode="joint", num_steps=1))
    with pytest.raises(ArtifactError, match="passage encoder"):
        train(**{**inputs, "model": str(tmp_path / "joint")}, trained=str(tmp_path / "trained"), config=CONFIG)


def test_missing_split(inputs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'nothing'"):
        train(**inputs, trained=str(tmp_path / "trained"), config=dataclasses.replace(CONFIG, split="nothing"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", -1),
        ("learning_rate", -1.0),
        ("dropout", 1.0),
        ("num_retrieved", 2),
        ("closed_book", True),
        ("temperature_gold", 0.0),
        ("floor_ratio", 2.0),
        ("max_questions", 0),
        ("split", ""),
    ],
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


def start(inputs: dict[str, str], trained: Path, home: Path) -> subprocess.Popen[str]:
    """The stage as a command in a process of its own."""
    flags = [f"--{name}={place}" for name, place in {**inputs, "trained": str(trained)}.items()]
    plain = dataclasses.asdict(dataclasses.replace(CONFIG, num_steps=40, checkpoint_every_steps=2))
    environment = {**os.environ, "RALM_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "components.train", *flags, f"--config={json.dumps(plain)}"]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stderr=subprocess.PIPE)


def wait_for_checkpoint(process: subprocess.Popen[str], home: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if list(home.glob("checkpoints/*/step-*")):
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint: {process.communicate()[1]}")


@pytest.mark.slow
def test_kill_9_and_again_gives_the_same_bytes(inputs: dict[str, str], tmp_path: Path) -> None:
    whole = start(inputs, tmp_path / "whole", tmp_path / "home-1")
    assert whole.wait(timeout=300) == 0, whole.communicate()[1]
    killed = start(inputs, tmp_path / "killed", tmp_path / "home-2")
    wait_for_checkpoint(killed, tmp_path / "home-2")
    killed.kill()
    assert killed.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again = start(inputs, tmp_path / "killed", tmp_path / "home-2")
    messages = again.communicate(timeout=300)[1]
    assert again.returncode == 0, messages
    assert "going on after update" in messages
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_a_failure(inputs: dict[str, str], tmp_path: Path) -> None:
    process = start(inputs, tmp_path / "trained", tmp_path / "home")
    wait_for_checkpoint(process, tmp_path / "home")
    process.terminate()
    messages = process.communicate(timeout=60)[1]
    assert process.returncode not in (0, -signal.SIGTERM), messages
    assert "stopped after update" in messages
    assert not (tmp_path / "trained" / "manifest.json").exists()


def test_manifest_is_returned(inputs: dict[str, str], tmp_path: Path) -> None:
    manifest = train(**inputs, trained=str(tmp_path / "trained"), config=dataclasses.replace(CONFIG, num_steps=1))
    assert isinstance(manifest, Manifest)
    assert set(manifest.inputs) == {"passages", "index", "model", "questions"}
    timings = json.loads((tmp_path / "trained" / "timings.json").read_text())
    assert {"search_ms", "encode_ms", "forward_ms", "score_ms", "backward_ms", "update_ms"} <= set(timings)


def test_no_updates_leave_the_model_as_it_is(inputs: dict[str, str], tmp_path: Path) -> None:
    """The zero-shot form of a recipe."""
    manifest = train(**inputs, trained=str(tmp_path / "trained"), config=dataclasses.replace(CONFIG, num_steps=0))
    before, after = open_model(inputs["model"]), open_model(str(tmp_path / "trained"))
    assert manifest.counts["steps"] == 0
    assert after.fingerprints["question_encoder"] == before.fingerprints["question_encoder"]
    first, second = trained_weights(before.folder, "reader"), trained_weights(after.folder, "reader")
    assert not is_changed(first, second)
