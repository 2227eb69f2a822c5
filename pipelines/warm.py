"""Start tasks as forks of processes that have imported once what they need: one without torch, one with it.

A graph of a dozen small tasks would otherwise spend more time on imports than on work. Each task still is a process of
its own, with its own session, so that a signal to its group ends it and what it started. Tasks that need no torch do
not wait for its import, and do not carry it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Final

from pipelines.fork_server import ForkServer, end_with_parent
from ralm import tracking
from ralm.artifacts.files import ralm_home
from ralm.corpus.parallel import without_main_module
from ralm.errors import ConfigError

EXECUTOR: Final = "kfp.dsl.executor_main"
KFP_RUNTIME: Final = "_KFP_RUNTIME"
"""Set to true by the compiled command, for the executor."""
PRELOADED: Final = [
    EXECUTOR,
    "jsonargparse",
    "pipelines.cli",
    *(f"components.{name}.stage" for name in ("plan", "download", "report", "compare", "gate", "register")),
    *(f"components.{name}.stage" for name in ("select", "watch", "track")),
]
"""For every task; none of them imports torch."""
FOR_TRACKING: Final = ["mlflow", "mlflow.store.tracking.sqlalchemy_store"]
"""For every task where runs are tracked."""
WITH_TORCH: Final = [f"components.{name}.stage" for name in ("embed", "index", "train", "evaluate")]
"""For tasks that need torch."""
GRACE_S: Final = 10.0
_torch_server: ForkServer | None = None


@dataclass(frozen=True)
class Child:
    """A running task."""

    pid: int
    """Its process id, also the id of its process group."""
    stdout: IO[str]
    """What it prints, errors included."""
    ended: Future[int]
    """Its exit code. Of the objects for a process only one thread may wait; for this, a signal handler too."""

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Exit code, negative for a signal; None if it has not ended in time."""
        try:
            return self.ended.result(timeout_s)
        except TimeoutError:
            return None

    def explain(self, code: int) -> str:
        """Nothing that its exit code does not tell."""
        return ""

    def signal(self, number: int) -> None:
        """Send a signal to its group; does nothing after its end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Close its output."""
        self.stdout.close()


def warm_up(*, with_torch: bool) -> None:
    """Begin with the imports; does not wait for them.

    Args:
        with_torch: there will be tasks that need torch.
    """
    global _torch_server
    if sys.platform != "linux":  # elsewhere a fork of a process with large libraries is not safe
        return
    modules = [*PRELOADED, *(FOR_TRACKING if PRELOADED and tracking.is_enabled() else ())]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    before = os.environ.get(KFP_RUNTIME)
    os.environ[KFP_RUNTIME] = "true"  # kfp then leaves out its clients, as in an image; they take longer than the rest
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop(KFP_RUNTIME) if before is None else os.environ.update({KFP_RUNTIME: before})
    if with_torch and _torch_server is None:
        with without_main_module():
            _torch_server = ForkServer(WITH_TORCH)


def start_task(full_command: list[str], environment: Mapping[str, str], *, with_torch: bool = False) -> Child:
    """Run the command of a lightweight Python component.

    Args:
        full_command: `sh -c SCRIPT SOURCE ARGUMENTS...` as the compiler writes it.
        environment: variables beside those of this process.
        with_torch: it needs torch.

    Raises:
        ConfigError: the command is of another kind.
    """
    if len(full_command) < 5 or not re.search(rf"-m {re.escape(EXECUTOR)}\s", full_command[2]):
        raise ConfigError(f"the local runner runs Python components only, found the command {full_command[:3]}")
    warm_up(with_torch=with_torch)
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = _fork((full_command[3], full_command[4:], dict(environment)), writer, with_torch=with_torch)
    writer.close()
    stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
    reader.close()
    ended: Future[int] = Future()
    threading.Thread(target=_wait_for, args=(process, ended), daemon=True).start()
    return Child(int(process.pid), stdout, ended)


def _wait_for(process: Any, ended: Future[int]) -> None:
    process.join()
    ended.set_result(int(process.exitcode))


def _fork(arguments: tuple[Any, ...], output: Connection, *, with_torch: bool) -> Any:
    """A process that runs the executor."""
    global _torch_server
    if with_torch and _torch_server is not None:
        try:
            return _torch_server.start(_run_executor, arguments, output)
        except (OSError, EOFError):  # killed, perhaps; the task imports what it needs itself
            _torch_server = None
    process = multiprocessing.get_context("forkserver").Process(target=_run_executor, args=(*arguments, output))
    with without_main_module():
        process.start()
    return process


def _run_executor(source: str, arguments: list[str], environment: Mapping[str, str], output: Connection) -> None:
    """In the forked child: what the compiled shell script does, without a new Python."""
    os.setsid()
    end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    threading.Thread(target=_end_with_driver, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ephemeral_component.py"
        program.write_text(source, encoding="utf-8")
        sys.argv = [EXECUTOR, "--component_module_path", str(program), *arguments]
        os.environ[KFP_RUNTIME] = "true"
        try:
            importlib.import_module(EXECUTOR).executor_main()
        except OSError as error:  # of kfp's own files; a stage has told its errors itself
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"ralm: error: {error.filename or ralm_home()}: {os.strerror(error.errno).lower()}")
            sys.exit(1)
        finally:
            atexit._run_exitfuncs()


def _end_with_driver() -> None:
    """Wait until the driver is gone, killed perhaps, then end this task and what it started.

    The server is no sign of that: it lives as long as one of its tasks, since each holds its pipe open.
    """
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)
