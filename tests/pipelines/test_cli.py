from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import quickstart, runs
from pipelines.cli import STAGES, main


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        *([name, "--help"] for name in (*STAGES, "search", "ask", "quickstart")),
        ["pipeline", "run", "--help"],
    ],
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as leave:
        code = leave.code
    assert code == 0
    assert "usage:" in capsys.readouterr().out


def test_help_is_fast() -> None:
    started_at = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipelines.cli", "--help"], check=True, capture_output=True)
    assert time.monotonic() - started_at < 2


def test_search_prints_one_json_object(
    toy_passages: str, toy_index: str, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--passages", toy_passages, "--index", toy_index, "--model", tiny_model]
    assert main(["search", *places, "--question", "colour of otter", "--k", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["passages"]) == 3
    scores = [passage["score"] for passage in found["passages"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nonsense"], "invalid choice"),
        (["ask"], "the following arguments are required"),
        (["ask", "q"], "no trained model"),
        (["ask", "q", "--model", "m"], "missing: --index, --passages"),
        (["ask", "q", "--model", "m", "--index", "i", "--passages", "p"], "no such artifact"),
        (["quickstart", "--corpus", "nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["pipeline", "run", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_bad_input_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = [text for text in printed.err.splitlines() if text.startswith("ralm: error: ")]
    assert expected in line


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    place = tmp_path / "run.yaml"
    place.write_text("num_steps: 3\nlearning_rate: 1\nsettings: {train: {batch_size: 2}}\n")
    inputs = runs.read_inputs(str(place))
    assert inputs == {"num_steps": 3, "learning_rate": 1.0, "settings": '{"train": {"batch_size": 2}}'}


@pytest.mark.parametrize("text", ["nonsense: 1", "num_steps: many", "num_steps: true", "- 1", "a: [", "seed: 1.5"])
def test_bad_config_files(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run.yaml"
    place.write_text(text)
    assert main(["pipeline", "run", "--config", str(place)]) == 2
    assert f"ralm: error: {place}: " in capsys.readouterr().err


def test_own_documents_with_the_last_model(
    tmp_path: Path, tiny_model: str, toy_index: str, toy_passages: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = runs.LastRun(recipe="quickstart", model=tiny_model, index=toy_index, passages=toy_passages)
    runs.record_last(last)
    folder = tmp_path / "my notes"
    folder.mkdir()
    (folder / "otter.md").write_text("# Otter\n\nThe colour of otter is mostly silver in the northern valleys.\n")
    result = quickstart.index_own(str(folder))
    assert result["recipe"] == "quickstart-my-notes"
    assert result["passages"] == 1
    assert main(["ask", "what is the colour of otter", "--k", "5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["source"] == "last run, quickstart-my-notes"
    assert "silver" in answer["passages"][0]["text"]
    assert main(["store", "list", "--json"]) == 0
    kinds = {item["kind"] for item in json.loads(capsys.readouterr().out)["artifacts"]}
    assert {"passages", "embeddings", "index"} <= kinds
