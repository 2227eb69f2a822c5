"""The task that CONTRIBUTING.md shows is taken from the page, put into the catalogue, trained and evaluated."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path

import pytest

from components.download.stage import download
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.train.config import TrainConfig
from components.train.stage import train
from ralm.artifacts.tables import read_table
from ralm.errors import DataError
from ralm.tasks.catalog import TASKS

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def blocks() -> list[str]:
    """The code blocks of the section, in order: module, line of the catalogue, rows."""
    (section,) = re.findall(r"^## Adding a task$(.*?)(?=^## )", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return re.findall(r"^```\w+\n(.*?)^```", section, re.M | re.S)


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source, line, rows = blocks()
    module = types.ModuleType("ralm.tasks.yes_no")
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    for name, task in eval(f"{{{line}}}", module.__dict__).items():
        monkeypatch.setitem(TASKS, name, task)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows)
    download(source=str(tmp_path), questions=str(tmp_path / "questions"))
    return str(tmp_path / "questions")


def test_the_task_of_the_guide(
    questions: str, toy_passages: str, toy_index: str, tiny_model: str, tmp_path: Path
) -> None:
    places = {"passages": toy_passages, "index": toy_index, "questions": questions}
    config = TrainConfig(num_steps=2, batch_size=2, num_passages=2, warmup_steps=0, precision="fp32")
    train(**places, model=tiny_model, trained=str(tmp_path / "trained"), config=config)
    evaluate(
        **places,
        model=str(tmp_path / "trained"),
        predictions=str(tmp_path / "out"),
        config=EvaluateConfig(num_passages=2, recall_at=(1,)),
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) == {"accuracy", "eval_loss", "num_questions"}, "no text is sought in passages"
    rows = read_table(str(tmp_path / "out" / "test.parquet"), "predictions/1").to_pylist()
    assert [row["answers"] for row in rows] == [["yes"], ["no"]]
    assert json.loads(rows[0]["metadata"])["query"] == "is granite amber? yes or no"


def test_its_check_runs(questions: str, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"task": "yes_no", "question": "is it", "label": "perhaps"}))
    with pytest.raises(DataError, match=r"test.jsonl line 1: .*label: expected yes or no, found 'perhaps'"):
        download(source=str(tmp_path / "test.jsonl"), questions=str(tmp_path / "bad"))
