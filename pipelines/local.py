"""Run the compiled graph on this machine, through `kfp.local`: each task a subprocess of this Python, or a container.

kfp 2.17's runners print everything to stdout, name no task in their errors, leave children behind when they are
stopped, and take a container that fails quickly for a success. The functions replaced in `_patched_runner` put that
right; the graph itself is run by kfp as it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import yaml

from components.images import BASE_IMAGE
from pipelines.compile import RUNNERS, Runner, compiled_file
from pipelines.containers import hand_over, open_engine, remove_left
from pipelines.tasks import Tasks
from pipelines.tracking_server import served_tracking
from pipelines.warm import warm_up
from ralm.artifacts.files import ralm_home, remove
from ralm.artifacts.lock import if_free, only_one
from ralm.errors import ConfigError, WorkerError

logger = logging.getLogger(__name__)
KFP_VERSION: Final = "2.17."
_QUIET: Final = {
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
DRIVER_LOCK: Final = "driver.lock"
"""In a run's folder, and locked while its driver works; free: the driver was killed, or could not close the run."""
CONTAINERS: Final = "containers"
"""Mark in the folder of a run whose tasks are containers."""


class PipelineError(WorkerError):
    """A task of the pipeline failed; the message names it, the exit code is the task's where it had one."""


@dataclass(frozen=True)
class FinishedRun:
    """What a pipeline run made."""

    run_id: str
    events: list[dict[str, Any]]
    """One for each stage, as they ended: stage, kind, uri, fingerprint, counts, reused, elapsed_s."""
    elapsed_s: float

    def last(self, kind: str) -> str:
        """Location in the store of the last artifact of a kind."""
        return next((str(event["uri"]) for event in reversed(self.events) if event["kind"] == kind), "")

    def all(self, kind: str) -> list[str]:
        """Locations of all artifacts of a kind, in order."""
        return [str(event["uri"]) for event in self.events if event["kind"] == kind]


def run_pipeline(
    arguments: Mapping[str, Any], *, runner: Runner = "subprocess", file: Path | None = None
) -> FinishedRun:
    """Run a compiled graph here, to its end.

    Args:
        arguments: pipeline inputs.
        runner: what its tasks are; also says which compiled file.
        file: another compiled file of the same graph.

    Raises:
        PipelineError: a task failed; the message names it and gives its last error.
        ConfigError: another kfp than this runner was written for, no such file, or no engine or image for containers.
        KeyboardInterrupt: SIGINT or SIGTERM; all children have ended.
    """
    path = file or compiled_file(RUNNERS[runner])
    if not path.is_file():
        raise ConfigError(f"{path}: no compiled pipeline; run `ralm pipeline compile`")
    run_id = uuid.uuid4().hex[:16]
    folder = ralm_home() / "runs" / run_id
    events = folder / "events.jsonl"
    environment = {**_QUIET, "RALM_RUN_ID": run_id, "RALM_EVENTS": str(events)}
    if sys.stderr.isatty():
        environment["RALM_PROGRESS"] = "driver"
    tasks = Tasks(environment=environment, logs=folder / "logs")
    given = dict(arguments) if runner == "subprocess" else _with_whole_paths(arguments)
    started_at = time.monotonic()
    with _known_as_alive(folder):
        status = ""
        try:
            with _stopping_on_signals(tasks), _prepared(runner, tasks, path, folder, given):
                _run_with_kfp(path, given, folder, tasks)
        except KeyboardInterrupt:
            tasks.stop()
            status = "KILLED"
            raise
        except (PipelineError, ConfigError):
            status = "FAILED"
            raise
        finally:
            _tidy_up(folder, status)
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    return FinishedRun(run_id, [json.loads(line) for line in lines], time.monotonic() - started_at)


def _with_whole_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Containers work in another folder."""
    return {
        name: os.path.abspath(value) if isinstance(value, str) and "/" in value and os.path.exists(value) else value
        for name, value in arguments.items()
    }


@contextlib.contextmanager
def _prepared(runner: Runner, tasks: Tasks, path: Path, folder: Path, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside, there is what tasks of this kind need: for containers an engine, their images, and MLflow's server."""
    if runner == "subprocess":
        yield
        return
    engine = open_engine(folder.name, arguments)
    engine.check_images(set(_images(path).values()))
    (folder / CONTAINERS).touch()
    with served_tracking(folder / "mlflow.log") as uri:
        hand_over(ralm_home())
        tasks.engine = engine
        if uri:
            tasks.environment = {**tasks.environment, "MLFLOW_TRACKING_URI": uri}
        yield


def _images(path: Path) -> dict[str, str]:
    """The image of each component of a compiled graph."""
    with path.open(encoding="utf-8") as file:
        spec = next(yaml.load_all(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    executors = spec["deploymentSpec"]["executors"]
    found = {name: executors.get(part.get("executorLabel"), {}) for name, part in spec["components"].items()}
    return {name: executor["container"]["image"] for name, executor in found.items() if "container" in executor}


def _run_with_kfp(path: Path, arguments: dict[str, Any], folder: Path, tasks: Tasks) -> None:
    if not tasks.engine:
        tasks.with_torch = {name.removeprefix("comp-") for name, image in _images(path).items() if image != BASE_IMAGE}
        warm_up(with_torch=bool(tasks.with_torch))  # while this process imports kfp
    import kfp
    from kfp import components, local

    if not kfp.__version__.startswith(KFP_VERSION):
        raise ConfigError(f"kfp: the local runner needs version {KFP_VERSION}x, found {kfp.__version__}")
    with _patched_runner(tasks), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Task .* no effect in the current local runner")
        outputs, workspace = folder / "outputs", folder / "workspace"
        for place in (outputs, workspace):
            place.mkdir(parents=True, exist_ok=True)
        runner = local.DockerRunner() if tasks.engine else local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=str(outputs), workspace_root=str(workspace))
        pipeline = components.load_component_from_file(str(path))
        try:
            pipeline(**arguments)
        except RuntimeError as error:
            if tasks.is_stopped:
                raise KeyboardInterrupt from error
            told = f"task {tasks.failed or 'unknown'} failed: {tasks.reason or error}"
            raise PipelineError(told, exit_code=tasks.exit_code) from error
        except TypeError as error:
            raise ConfigError(f"pipeline: {error}") from error


@contextlib.contextmanager
def _patched_runner(tasks: Tasks) -> Iterator[None]:
    from kfp.local import docker_task_handler, executor_input_utils, logging_utils, subprocess_task_handler

    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (subprocess_task_handler, "run_local_subprocess", tasks.run_subprocess),
            (docker_task_handler, "run_docker_container", tasks.run_container),
            (executor_input_utils, "get_local_task_resource_name", tasks.name),
            (logging_utils, "local_logger_context", contextlib.nullcontext),
            (logging_utils, "indented_print", contextlib.nullcontext),
            (logging_utils, "print_horizontal_line", lambda: None),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        root = logging.getLogger()
        for handler in root.handlers:
            handler.addFilter(_is_not_from_kfp)
            stack.callback(handler.removeFilter, _is_not_from_kfp)
        yield


def _is_not_from_kfp(record: logging.LogRecord) -> bool:
    """The runner of kfp logs through the root logger."""
    return record.name != "root"


@contextlib.contextmanager
def _stopping_on_signals(tasks: Tasks) -> Iterator[None]:
    """On SIGINT and SIGTERM end the children first: kfp's loop threads wait for them."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        tasks.stop()
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


@contextlib.contextmanager
def _known_as_alive(folder: Path) -> Iterator[None]:
    """Hold the lock of a run, after tidying up behind drivers that were killed: the kernel has freed theirs."""
    with contextlib.ExitStack() as stack:
        with only_one(ralm_home() / "locks" / "runs.lock", "starting a pipeline run"):
            for lock in folder.parent.glob(f"*/{DRIVER_LOCK}"):
                with if_free(lock) as is_dead:
                    if is_dead:
                        logger.info("the run %s was killed; tidying up behind it", lock.parent.name)
                        _tidy_up(lock.parent, "KILLED")
            stack.enter_context(only_one(folder / DRIVER_LOCK, "working"))
        yield


def _tidy_up(folder: Path, status: str) -> None:
    """End a run, or one whose driver was killed.

    Args:
        folder: of the run.
        status: of its MLflow run where that is still open: FAILED or KILLED; empty: its last task has closed it.
    """
    from ralm.tracking import close_left_runs

    if status and (folder / CONTAINERS).exists():
        remove_left(folder.name)
    remove(folder / "outputs")  # first: on a full disk MLflow needs the room
    if not status or close_left_runs(folder.name, status):
        remove(folder / DRIVER_LOCK)
