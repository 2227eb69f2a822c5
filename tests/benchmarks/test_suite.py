"""The suite as a whole: `python -m benchmarks` with tiny rows, its table, files and exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import machine
from benchmarks.goals import GOALS, Goal
from benchmarks.plots import goals_plot
from benchmarks.suite import ROWS, Bench, check_goals, goal_table, measure_apart

ROOT = Path(__file__).resolve().parents[2]


def test_a_small_run_is_shown_and_kept(tmp_path: Path) -> None:
    results = tmp_path / "results.md"
    results.write_text("# Results\n\nIntroduction.\n\n## Older\n\nText.\n", encoding="utf-8")
    words = ["limits", "T1", "--small", "--repeats", "1", "--work", str(tmp_path / "work"), "--append", str(results)]
    environment = {**os.environ, "RALM_TRACKING": "off", "RALM_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| T1 | share of tokenizing in the CPU time of embedding | ≤ 0.02 (0) |" in done.stdout
    assert "| limit of the machine |" in done.stdout
    assert "(tiny sizes: no figures)" in done.stdout
    (kept,) = (tmp_path / "work" / "runs").glob("*.json")
    run = json.loads(kept.read_text(encoding="utf-8"))
    assert list(run["rows"]) == ["limits", "T1"]
    assert run["goals"][0]["value"] == run["rows"]["T1"]["figures"]["tokenizing_share"]
    assert kept.with_suffix(".svg").is_file()
    text = results.read_text(encoding="utf-8")
    assert text.index("Introduction.") < text.index("benchmark suite") < text.index("## Older\n\nText.")


def test_a_row_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "passages-of-64").write_text("in the way")
    found = measure_apart("E1", Bench(work=tmp_path, small=True, repeats=1))
    assert found["error"] == "ended with 2"
    (line, *_) = check_goals({"E1": found})
    assert (line["value"], line["state"]) == (None, "not measured")
    run = {**dict.fromkeys(("machine", "load_before", "repeats"), ""), "time": "2026-01-01T00:00:00", "small": False}
    text = "\n".join(command.describe({**run, "versions": {}, "goals": [line], "rows": {"E1": found}}))
    assert "E1: ended with 2" in text


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["E9"])
    assert ended.value.code == 2
    assert "no row E9; there are limits, E1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["T1", "--repeats", "0"], "argument --repeats: '0' is no whole number of at least 1"),
        (["T1", "--append", "nowhere.md"], "--append: no file nowhere.md"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*words, "--small", "--work", str(tmp_path / "work")])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_work_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert command.main(["T1", "--small", "--work", str(tmp_path / "file" / "work")]) == 1
    assert capsys.readouterr().err == f"ralm: error: {tmp_path}/file/work/rows: not a directory\n"


@pytest.mark.parametrize("kill", [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["ctrl-c", "sigterm"])
def test_stopping_the_suite_stops_its_row(kill: tuple[Callable[[int, int], None], int], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks", "growth", "--small", "--work", str(tmp_path / "work")]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        while not (tmp_path / "work" / "tiny-model").exists():
            assert running.poll() is None
            time.sleep(0.05)
        (row,) = psutil.Process(running.pid).children()
        send, number = kill
        send(running.pid, number)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert not row.is_running()
    assert "ralm: interrupted" in told
    assert "Traceback" not in told


def test_an_input_out_of_reach_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.rows", "P2", "--work", str(tmp_path / "work")]
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("ralm: error: native-sparse-attention-pytorch==0.2.3: pip")
    assert "Traceback" not in done.stderr


def test_each_goal_has_a_row() -> None:
    assert {goal.row for goal in GOALS} == set(ROWS) - {"limits", "growth"}
    assert len({(goal.row, goal.figure) for goal in GOALS}) == len(GOALS)


def test_goals_are_met_from_either_side() -> None:
    least, most = Goal("A", "f", "least", 2.0, 3.0), Goal("A", "f", "most", 2.0, is_limit=True)
    assert [least.is_met(value) for value in (1.9, 2.0, 2.1)] == [False, True, True]
    assert [most.is_met(value) for value in (1.9, 2.0, 2.1)] == [True, True, False]


def test_the_table_and_the_plot_say_the_same() -> None:
    rows = {
        "T1": {"figures": {"tokenizing_share": 0.01}},
        "J2": {"figures": {"waiting_share": 0.2}},
        "O1": {"figures": {}},
    }
    lines = check_goals(rows)
    assert [line["state"] for line in lines] == ["met", "missed", "not measured", "not measured"]
    table = goal_table(lines)
    assert table[2].endswith("| ≤ 0.02 (0) | 0.01 | met |")
    assert table[-1].endswith("| - | not measured |")
    drawn = ElementTree.fromstring(goals_plot(lines))
    bars = [found.attrib for found in drawn if found.tag.endswith("rect")]
    goal_x = next(float(found.attrib["x1"]) for found in drawn if found.tag.endswith("line"))
    ends = [float(bar["x"]) + float(bar["width"]) for bar in bars]
    assert len(bars) == 2
    assert ends[0] > goal_x > ends[1]
    assert bars[0]["fill"] != bars[1]["fill"]


def test_long_ways_are_called_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as often as it is to be, or three times, whatever the others take."""
    monkeypatch.setattr(machine, "seconds", lambda function, device: function())
    ways = {"short": lambda: 12.0, "long": lambda: 14.0, "longest": lambda: 100.0}
    times = machine.interleaved(ways, torch.device("cpu"), 5)
    assert {name: len(found) for name, found in times.items()} == {"short": 5, "long": 3, "longest": 3}
    assert len(machine.interleaved(ways, torch.device("cpu"), 2)["longest"]) == 2
