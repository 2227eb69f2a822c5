"""The tasks of a pipeline run on this machine while they run: what they say, how they end, and ending them.

What a task is, a process or a container, is the business of `warm.py` and `containers.py`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Protocol

from pipelines.containers import Engine
from pipelines.warm import start_task
from ralm.log import PROGRESS_MARK

logger = logging.getLogger(__name__)
GRACE_S = 10.0
EXIT_INTERRUPTED = 130
LOST: Final = 1
NOT_TOLD: Final = "nothing tells how it ended: the container engine is gone, or somebody has removed the container"
_EXECUTOR_NOISE: Final = re.compile(
    r"^\[KFP Executor | Wrote executor output file to |^ModuleNotFoundError\(\"No module named 'faiss\.swig"
)
_ERROR_LINE: Final = re.compile(r"ralm: error: (.*)")


class Child(Protocol):
    """A running task."""

    @property
    def stdout(self) -> Iterable[str]:
        """What it prints, line by line, errors included; ends with the task."""

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Exit code, negative for a signal; None if it has not ended in time, or nobody knows."""

    def explain(self, code: int) -> str:
        """How it ended, where the runner knows better than the exit code; else empty."""

    def signal(self, number: int) -> None:
        """Send a signal to it and what it started; does nothing after its end."""

    def close(self) -> None:
        """Give up what it holds, after its end."""


@dataclass
class Tasks:
    """The tasks of a run as they go: children that are alive, and how the first failed one ended."""

    environment: Mapping[str, str]
    logs: Path | None = None
    """Folder that keeps what each task says, also what is not shown."""
    engine: Engine | None = None
    """Of containers."""
    with_torch: Set[str] = frozenset()
    """Names of the components that need torch; `local.py` reads them from the graph."""
    children: list[Child] = field(default_factory=list)
    failed: str = ""
    reason: str = ""
    exit_code: int = 1
    """Of the command, if a task failed."""
    is_stopped: bool = False
    current: threading.local = field(default_factory=threading.local)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while a child starts; a signal may come to the very thread that holds it."""

    def name(self, component_name: str) -> str:
        """Remember which task this thread is about to run; kfp calls it for the task's folder name."""
        name = component_name.removeprefix("comp-")
        self.current.task = name
        return name

    def run_subprocess(self, full_command: list[str], env_vars: Mapping[str, str] | None = None) -> int:
        """Run a task's command; its lines go to stderr, without those of kfp's executor."""
        variables = {**self.environment, **(env_vars or {})}
        with_torch = getattr(self.current, "task", "") in self.with_torch
        return self.follow(lambda: start_task(full_command, variables, with_torch=with_torch))

    def run_container(
        self, client: object, image: str, command: list[str], volumes: object, environment: Any = None, **_: Any
    ) -> int:
        """The same in a container; the client and the mounts of kfp's runner are not used."""
        engine = self.engine
        assert engine is not None
        return self.follow(lambda: engine.start(image, command, {**self.environment, **(environment or {})}))

    def follow(self, start: Callable[[], Child]) -> int:
        """Start a task and wait for its end; returns its exit code."""
        name = re.sub(r"-op(-\d+)?$", r"\1", getattr(self.current, "task", "task"))
        started_at = time.monotonic()
        with self.lock:
            if self.is_stopped:
                return EXIT_INTERRUPTED
            child = start()
            self.children.append(child)
        logger.info("task %s: started", name)
        try:
            reason = self._stream(child, name)
            ended = child.wait()
            code = LOST if ended is None else ended
            reason = NOT_TOLD if ended is None else child.explain(code) or reason
        finally:
            self.children.remove(child)
            child.close()
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")
        logger.info("task %s: %s after %.0f s", name, "done" if code == 0 else "failed", time.monotonic() - started_at)
        if code != 0 and not self.failed and not self.is_stopped:
            self.failed, self.reason = name, reason or _describe_exit(code)
            self.exit_code = max(code, 1)
            if self.logs is not None:
                logger.info("task %s: all it said is in %s", name, self.logs / f"{name}.log")
        return code

    def _stream(self, child: Child, name: str) -> str:
        """Pass on the child's lines, and keep them; the last error among them is returned."""
        if self.logs is None:
            return self._show_lines(child.stdout)
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            log = (self.logs / f"{name}.log").open("ab", buffering=0)
        except OSError:  # the disk is full; they are shown all the same
            return self._show_lines(child.stdout)
        with log:
            return self._show_lines(_kept(child.stdout, log))

    def _show_lines(self, lines: Iterable[str]) -> str:
        reason = ""
        is_noise = False
        for line in lines:
            is_noise = bool(_EXECUTOR_NOISE.search(line)) or (is_noise and line[:1] in (" ", "{", "}"))
            if found := _ERROR_LINE.search(line):
                reason = found[1]
            if not is_noise and line.strip():
                _show(line)
        return reason

    def stop(self) -> None:
        """End all children and what they started: first politely, then not."""
        with self.lock:
            self.is_stopped = True
            children = list(self.children)
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in children:
            child.wait(max(0.1, deadline - time.monotonic()))
        for child in children:
            child.signal(signal.SIGKILL)


def _kept(lines: Iterable[str], log: IO[bytes]) -> Iterator[str]:
    """The same lines, written to a file as well; where the disk is full, only passed on."""
    for line in lines:
        if not line.startswith(PROGRESS_MARK):
            with contextlib.suppress(OSError):
                log.write(line.encode(errors="replace"))
        yield line


def _describe_exit(code: int) -> str:
    if code < 0 and -code in set(signal.Signals):
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _show(line: str) -> None:
    """Pass a task's line on; its progress is shown in place, until the next line."""
    clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
    if line.startswith(PROGRESS_MARK):
        sys.stderr.write(f"{clear}    {line.removeprefix(PROGRESS_MARK).rstrip()}")
    else:
        sys.stderr.write(f"{clear}    {line}")
    sys.stderr.flush()
