"""A pipeline run in processes of its own, that can be watched and killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "RALM_FAULTS_RUN"
"""Variable in the environment of the driver and, by inheritance, of all that it starts."""
LIMIT_S: Final = 120.0
_TASK_LINE: Final = re.compile(r"I task (\S+): (started|done|failed)")


@dataclass(frozen=True)
class Span:
    """When a task was there, in seconds since the command started."""

    name: str
    start_s: float
    end_s: float


@dataclass
class Log:
    """The lines of a run as they come."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    is_closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def text(self) -> str:
        """All lines so far."""
        return "".join(line for _, line in list(self.lines))

    def spans(self) -> list[Span]:
        """The tasks that were started; one that has not ended yet ends at infinity."""
        found: list[Span] = []
        for seconds, line in list(self.lines):
            if matched := _TASK_LINE.search(line):
                name, state = matched.groups()
                if state == "started":
                    found.append(Span(name, seconds, float("inf")))
                else:
                    place = next(i for i, span in enumerate(found) if span.name == name and span.end_s == float("inf"))
                    found[place] = Span(name, found[place].start_s, seconds)
        return found

    def running(self) -> list[str]:
        """Names of the tasks that are there now."""
        return [span.name for span in self.spans() if span.end_s == float("inf")]


class PipelineProcess:
    """`ralm pipeline run ...` as a session of its own.

    Args:
        words: what follows `ralm pipeline run`.
        home: its RALM_HOME.
        around: a command that runs the command given to it as its last words.
    """

    def __init__(self, words: Sequence[str], home: Path, around: Sequence[str] = ()) -> None:
        self.mark = uuid.uuid4().hex
        self.log = Log()
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "RALM_"))}
        settings = {"RALM_HOME": str(home), "RALM_TRACKING": "on", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [*around, sys.executable, "-m", "pipelines.cli", "pipeline", "run", *words],
            env={**kept, **settings, "PYTHONPATH": str(ROOT), MARK: self.mark},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.log.changed:
                self.log.lines.append((self.elapsed_s(), line))
                self.log.changed.notify_all()
        with self.log.changed:
            self.log.is_closed = True
            self.log.changed.notify_all()

    def elapsed_s(self) -> float:
        """Since the command was started."""
        return time.monotonic() - self.started_at

    def wait_for_task(self, name: str) -> bool:
        """Wait until a task starts; False if the run ends before."""

        def is_there() -> bool:
            return self.log.is_closed or any(span.name == name for span in self.log.spans())

        with self.log.changed:
            self.log.changed.wait_for(is_there, LIMIT_S)
        return any(span.name == name for span in self.log.spans())

    def wait(self) -> int:
        """Exit code of the driver, once it and all that it started have ended, and their last line was read.

        Raises:
            TimeoutError: some of them do not end.
        """
        self.process.wait(LIMIT_S)
        deadline = time.monotonic() + LIMIT_S
        while left := self.members():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still there after the driver ended: {left}")
            time.sleep(0.05)
        with self.log.changed:
            self.log.changed.wait_for(lambda: self.log.is_closed, LIMIT_S)
        return int(self.process.returncode)

    def members(self) -> list[int]:
        """Driver, fork server, tasks and what these started: all that carry the mark and are alive."""
        found = []
        for process in psutil.process_iter():
            try:
                is_alive = process.status() != psutil.STATUS_ZOMBIE
                if is_alive and process.environ().get(MARK) == self.mark:
                    found.append(process.pid)
            except psutil.Error:  # it has just ended, or is another user's
                continue
        return found

    def tasks(self) -> list[int]:
        """Processes of tasks: each leads a session."""
        found = []
        for pid in self.members():
            try:
                if pid != self.process.pid and os.getsid(pid) == pid:
                    found.append(pid)
            except ProcessLookupError:
                continue
        return found

    def kill(self, what: str) -> int:
        """kill -9 of `all`, the `driver`, or one `task`; how many processes were hit."""
        if what == "driver":
            return _kill([self.process.pid])
        if what == "task":
            return _kill(self.tasks()[-1:])
        hit = 0
        while found := self.members():  # one may have been forked while the others were killed
            hit += _kill(found)
        return hit


def _kill(pids: Sequence[int]) -> int:
    hit = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            hit += 1
        except ProcessLookupError:
            continue
    return hit
