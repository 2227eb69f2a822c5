"""From arguments to a typed call: flags, config files, precedence, errors, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.store import Contents, produce
from ralm.cli import exit_code, parse_config, run_stage, run_step, run_task
from ralm.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Settings of the toy stage."""

    batch_size: int = 4
    """Rows at a time."""

    kind: Literal["small", "large"] = "small"
    """How large."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, found {self.batch_size}")


def toy(*, output: str, num_shards: int = 1, config: ToyConfig = ToyConfig()) -> Manifest:  # noqa: B008
    """Make a toy.

    Args:
        output: Where it goes.
        num_shards: How many parts.
        config: Settings.
    """

    def build(folder: Path) -> Contents:
        if num_shards == 13:
            raise DataError("toys.txt line 3: expected a toy,\nfound nothing")
        (folder / "toy.txt").write_text(f"{num_shards}")
        return Contents(counts={"toys": num_shards})

    inputs = {"num_shards": str(num_shards)}
    return produce(output, kind="toy", stage="toy", stage_version=1, inputs=inputs, config=config, build=build)


def manifest_of(folder: Path) -> Manifest:
    return open_artifact(str(folder), "toy").manifest


def test_flags_with_dashes_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(toy, ["--output", f"{tmp_path}/o", "--num-shards", "3", "--config.batch-size=9", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"] == {"batch_size": 9, "kind": "small"}
    assert printed["counts"] == {"toys": 3}
    assert printed["reused"] is False


def test_a_flag_wins_over_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch_size: 7\nkind: large\n")
    command = ["--output", f"{tmp_path}/o", "--config", f"{tmp_path}/c.yaml", "--config.batch-size", "8"]
    assert run_stage(toy, command) == 0
    assert manifest_of(tmp_path / "o").config == {"batch_size": 8, "kind": "large"}


def test_config_as_json_text(tmp_path: Path) -> None:
    assert run_stage(toy, ["--output", f"{tmp_path}/o", "--config", '{"batch_size": 5}']) == 0
    assert manifest_of(tmp_path / "o").config["batch_size"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batch-size", "many"], "config.batch_size: expected int, found many"),
        (["--config.batch-size", "0"], "batch_size: expected at least 1, found 0"),
        (["--config.kind", "huge"], "found huge"),
        (["--config.batch", "3"], "unrecognized arguments: --config.batch"),
        (["--config", '{"batchsize": 3}'], "'batchsize'"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--num-shards", "13"], "toys.txt line 3: expected a toy, found nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_stage(toy, ["--output", f"{tmp_path}/o", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ralm: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "o" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/b.csv"), 2, "/a/b.csv: permission denied"),
        (OSError(28, "No space left on device", "/a/x", None, "/b/x"), 1, "/b/x: no space left on device"),
        (OSError("odd"), 1, "odd"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: OSError, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with exit_code() as outcome:
        raise error
    assert outcome.code == code
    assert capsys.readouterr().err == f"ralm: error: {message}\n"


def test_a_missing_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(toy, []) == 2
    assert "output" in capsys.readouterr().err


def test_help_shows_dashes_and_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_stage(toy, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in ("--num-shards", "How many parts.", "--config.batch-size", "Rows at a time.", "Make a toy."):
        assert words in text


def test_a_task_hands_over_references(tmp_path: Path) -> None:
    run_task(toy, output=f"{tmp_path}/o", num_shards=2, config='{"batch_size": 6}')
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["manifest.json"]
    assert manifest_of(tmp_path / "o").config["batch_size"] == 6


def test_a_task_with_bad_config_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_task(toy, output=f"{tmp_path}/o", config='{"batch_size": 6.5}')
    assert stopped.value.code == 2
    assert "batch_size" in capsys.readouterr().err


def test_events_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_EVENTS", str(tmp_path / "events.jsonl"))
    for _ in range(2):
        run_task(toy, output=f"{tmp_path}/o")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["reused"] for event in events] == [False, True]
    assert events[0]["stage"] == "toy"


def shown(*, output: str, config: ToyConfig = ToyConfig()) -> Manifest:  # noqa: B008
    """Make what a pipeline's user interface shows."""

    def build(folder: Path) -> Contents:
        (folder / "page.md").write_text("# Füße", encoding="utf-8")
        (folder / "metrics.json").write_text('{"recall@5": 0.5, "of": {"n": 3}, "name": "x", "is_new": true}')
        return Contents()

    return produce(output, kind="toy", stage="shown", stage_version=1, inputs={}, config=config, build=build)


@pytest.mark.parametrize("is_reused", [False, True])
def test_a_task_shows_pages_and_numbers(is_reused: bool, tmp_path: Path) -> None:
    if is_reused:
        shown(output=f"{tmp_path}/before")
    page, numbers = tmp_path / "ui" / "page.md", {"display_name": "metrics"}
    run_task(shown, output=f"{tmp_path}/o", views={"page.md": str(page)}, numbers=numbers)
    assert page.read_text(encoding="utf-8") == "# Füße"
    assert numbers == {"display_name": "metrics", "recall_at_5": 0.5, "of.n": 3.0}
    page.write_text("a copy of its own", encoding="utf-8")  # the artifact in the store stays as it is
    assert Path(manifest_of(tmp_path / "o").data_uri, "page.md").read_text(encoding="utf-8") == "# Füße"


def test_a_page_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_task(shown, output=f"{tmp_path}/o", views={"other.md": f"{tmp_path}/ui"})
    assert "other.md" in capsys.readouterr().err.splitlines()[-1]


def test_a_step_gives_what_it_returns_and_its_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def step(*, number: int) -> tuple[int, str]:
        if number < 0:
            raise ConfigError(f"number: expected 0 or more,\nfound {number}")
        return number, "x"

    assert run_step(step, number=3) == (3, "x")
    with pytest.raises(SystemExit) as stopped:
        run_step(step, number=-1)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ralm: error: number: expected 0 or more, found -1"


@pytest.mark.parametrize("text", ["[1]", "{", '{"unknown": 1}', '{"batch_size": "x"}'])
def test_config_that_is_no_config(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(ToyConfig, text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_half_done(tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "sleepy.py"
    program.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ralm.artifacts.manifest import Manifest\n"
        "from ralm.artifacts.store import Contents, produce\n"
        "from ralm.cli import run_stage\n"
        "def sleepy(*, output: str) -> Manifest:\n"
        "    '''Sleep.'''\n"
        "    def build(folder):\n"
        "        (folder / 'half').write_text('x'); print('started', flush=True); time.sleep(60)\n"
        "        return Contents()\n"
        "    return produce(output, kind='t', stage='s', stage_version=1, inputs={}, config={}, build=build)\n"
        "sys.exit(run_stage(sleepy))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program), "--output", str(tmp_path / "o")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()
    assert not list((Path(os.environ["RALM_HOME"]) / "store" / ".work").iterdir())
