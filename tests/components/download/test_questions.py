"""`ralm download --questions`: named question sets, the corpus as a source, few-shot tables, what is reused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from components.download.config import DownloadConfig
from components.download.stage import download
from pipelines.cli import main
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.errors import ArtifactError, ConfigError

EXCERPTS = Path(__file__).parents[2] / "data" / "question_sets"
FEVER = {"train": str(EXCERPTS / "fever" / "train.jsonl"), "test": str(EXCERPTS / "fever" / "shared_task_test.jsonl")}
TASKS = ["qa", "fever", "multiple_choice", "kilt", "mlm", "lm", "section"]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_questions(task: str, task_questions: Callable[[str], str]) -> None:
    artifact = open_artifact(task_questions(task), "questions")
    assert {"train.parquet", "dev.parquet", "test.parquet"} <= {entry.path for entry in artifact.manifest.files}
    for place, size in artifact.tables():
        table = read_table(place, "questions/1")
        assert table.num_rows == size > 0
        assert set(table.column("task").to_pylist()) == {task}


def test_the_manifest_says_what_was_read(tmp_path: Path) -> None:
    import hashlib

    manifest = download(source="dataset:fever", questions=str(tmp_path / "q"), config=DownloadConfig(files=FEVER))
    digests = {role: hashlib.sha256(Path(place).read_bytes()).hexdigest() for role, place in FEVER.items()}
    assert manifest.inputs == digests
    assert manifest.details["licence"] == "CC BY-SA 3.0"
    assert manifest.counts == {"train_questions": 15, "test_questions": 2, "questions": 17}


def test_files_and_shots_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shots.json").write_text("[7, 2]")
    words = ["download", "--source", "dataset:fever", "--questions", str(tmp_path / "q"), "--json"]
    files = ["--config.files", json.dumps(FEVER), "--config.shots", str(tmp_path / "shots.json")]
    assert main([*words, *files]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert "shots" in manifest["inputs"]
    few = read_table(str(tmp_path / "q" / "train-2-shot.parquet"), "questions/1").to_pylist()
    train = read_table(str(tmp_path / "q" / "train.parquet"), "questions/1").to_pylist()
    assert few == [train[2], train[7]]


def test_few_shot_table_of_own_files(tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "answers": ["a"]} for number in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(tmp_path / "train.jsonl")
    plain = download(source=source, questions=str(tmp_path / "plain"))
    assert plain.config == {}
    shots = {}
    for seed in (0, 1):
        config = DownloadConfig(num_shots=4, seed=seed)
        manifest = download(source=source, questions=str(tmp_path / f"few-{seed}"), config=config)
        assert manifest.config == {"num_shots": 4, "seed": seed}
        table = read_table(str(tmp_path / f"few-{seed}" / "train-4-shot.parquet"), "questions/1")
        shots[seed] = table.column("question").to_pylist()
    assert shots[0] != shots[1]


def test_plain_questions_do_not_depend_on_the_corpus(tmp_path: Path, toy_passages: str) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answers": ["a"]}\n')
    source = str(tmp_path / "test.jsonl")
    first = download(source=source, questions=str(tmp_path / "a"))
    second = download(source=source, questions=str(tmp_path / "b"), corpus=toy_passages)
    assert second.reused
    assert second.key == first.key


def test_corpus_questions_depend_on_the_corpus_and_the_seed(tmp_path: Path, toy_passages: str) -> None:
    keys = set()
    for number, changed in enumerate(({}, {"seed": 1}, {"num_dev": 3}, {"infoboxes": False})):
        config = DownloadConfig(**{"num_test": 4, "num_dev": 4, **changed})  # type: ignore[arg-type]
        place = str(tmp_path / str(number))
        manifest = download(source="corpus:lm", questions=place, corpus=toy_passages, config=config)
        assert manifest.inputs == {"corpus": open_artifact(toy_passages, "passages").fingerprint}
        keys.add(manifest.key)
    assert len(keys) == 4


def test_inputs_in_the_wrong_place(tmp_path: Path, toy_passages: str, toy_questions_artifact: str) -> None:
    place = str(tmp_path / "q")
    with pytest.raises(ConfigError, match="corpus:mlm is made from passages; give --corpus"):
        download(source="corpus:mlm", questions=place)
    with pytest.raises(ConfigError, match="--corpus goes with --questions, found --passages"):
        download(source="x.csv", passages=place, corpus=toy_passages)
    with pytest.raises(ArtifactError, match="expected a passages artifact, found a questions artifact"):
        download(source="corpus:mlm", questions=place, corpus=toy_questions_artifact)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_shots": -1}, "num_shots: expected 0 or more, found -1"),
        ({"num_shots": 2, "shots": "x"}, "shots: expected either num_shots or shots, found 2 and 'x'"),
        ({"num_dev": -1}, "num_dev: expected 0 or more"),
        ({"atlas_base_url": "here"}, "atlas_base_url: expected a URL such as .*, found 'here'"),
        ({"datasets_base_url": "here"}, "datasets_base_url: expected a URL"),
    ],
)
def test_bad_settings(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DownloadConfig(**changed)  # type: ignore[arg-type]


def test_base_urls_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_ATLAS_BASE_URL", "http://mirror/atlas")
    monkeypatch.setenv("RALM_DATASETS_BASE_URL", "http://mirror/datasets")
    config = DownloadConfig()
    assert (config.atlas_base_url, config.datasets_base_url) == ("http://mirror/atlas", "http://mirror/datasets")
