"""MLflow runs: one parent run for a pipeline run, a child for each stage. Nothing here may cost a finished artifact.

The rules, in this order: `MLFLOW_RUN_ID` is set (a pipeline backend made a run for this task) -> that run is resumed;
`parent_run_id` is given -> a child of it; else a run of its own. Runs go to `MLFLOW_TRACKING_URI`, or to a sqlite
database in `$RALM_HOME` where that is not set. `RALM_TRACKING=off` turns all off. `mlflow` is imported on first use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ralm.artifacts.files import exists, join, local_copy, ralm_home, read_json
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import files_location
from ralm.errors import ConfigError, RalmError
from ralm.log import is_first_worker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT: Final = "ralm"
KFP_RUN_TAG: Final = "kfp.run_id"
RALM_RUN_TAG: Final = "ralm.run_id"
PARENT_RUN_TAG: Final = "mlflow.parentRunId"
PROMOTION_TAG: Final = "ralm.promotion"
"""Of a parent run: what became of the challenger, `promoted: ...` or `refused: ...`; `nothing new: ...` without one."""
ERROR_TAG: Final = "ralm.error"
"""Of a parent run: the last error of a task. The task may have been tried again since."""
OUTCOME_TAG: Final = "ralm.outcome"
"""Of a parent run: succeeded, `nothing new: ...`, `refused: ...`, `failed: ...` or cancelled."""
MAX_DIGEST = 36
MAX_PARAMETER = 6000
PARAMETERS_IN_A_REQUEST = 100
SMALL_FILES: Final = (
    "manifest.json",
    "metrics.json",
    "report.html",
    "decision.html",
    "decision.json",
    "registration.json",
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
_active_run_id: str = ""


def is_enabled() -> bool:
    """False where `RALM_TRACKING=off`, and in all but the first process of a distributed run.

    Raises:
        ConfigError: the variable has another value than `on` and `off`.
    """
    setting = os.environ.get("RALM_TRACKING", "on").lower()
    if setting not in ("on", "off"):
        raise ConfigError(f"RALM_TRACKING: expected on or off, found {setting!r}")
    return setting == "on" and is_first_worker()


def tracking_uri() -> str:
    """Where runs are kept: `MLFLOW_TRACKING_URI`, else the sqlite database of this user."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_database()


def own_database() -> str:
    """The sqlite database in `$RALM_HOME`, which only processes with this folder use."""
    return f"sqlite:///{ralm_home() / 'mlflow.db'}"


def has_registry() -> bool:
    """True if there is a database or server to ask; costs no import and makes no database."""
    return is_enabled() and (bool(os.environ.get("MLFLOW_TRACKING_URI")) or (ralm_home() / "mlflow.db").exists())


def connect() -> MlflowClient:
    """Open the tracking store, after making the local database and the experiment.

    Only one process at a time does this, so that processes that start together do not make one database at once.
    """
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is raised as well
    uri = tracking_uri()
    home = ralm_home()
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if uri == own_database():
            _make_database(home / "mlflow.db")
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        if not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment(experiment_id=_experiment_id(client, is_local=uri.startswith("sqlite:")))
            os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # set by MLflow; here it would outlive a change of database
    return client


def _make_database(path: Path) -> None:
    """Make the local database if it is missing: under another name, as MLflow does not finish one that is half made."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{new.name}*"):  # with its journal
        left.unlink()
    SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "mlartifacts").as_uri()).engine.dispose()
    new.rename(path)


def _experiment_id(client: MlflowClient, *, is_local: bool) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = (ralm_home() / "mlartifacts").as_uri() if is_local else None
    return str(client.create_experiment(name, artifact_location=location))


def start_parent_run(name: str, *, kfp_run_id: str, params: Mapping[str, object]) -> str:
    """Make (or find, when the task is run again) the parent run of a pipeline run.

    Returns:
        Its id; empty where tracking is off, is not reachable, or the pipeline backend makes the runs itself.
    """
    if not is_enabled() or os.environ.get("MLFLOW_RUN_ID"):
        return ""
    return _guarded(lambda: _start_parent_run(name, kfp_run_id, params)) or ""


def _start_parent_run(name: str, kfp_run_id: str, params: Mapping[str, object]) -> str:
    import mlflow

    client = connect()
    found = _find_runs(client, KFP_RUN_TAG, kfp_run_id)
    if found:
        return found[0]
    tags = {KFP_RUN_TAG: kfp_run_id, RALM_RUN_TAG: os.environ.get("RALM_RUN_ID", kfp_run_id), **_source_tags()}
    run = mlflow.start_run(run_name=name, tags=tags)
    run_id = str(run.info.run_id)
    client.log_batch(run_id, params=_parameters(params))
    mlflow.end_run("RUNNING")
    return run_id


def finish_parent_run(*, tag: str, value: str, status: str, tags: Mapping[str, str] | None = None) -> None:
    """Close the parent run that carries a tag; one that the pipeline backend made is only tagged.

    Args:
        tag: `KFP_RUN_TAG` or `RALM_RUN_TAG`.
        value: the run's value of that tag.
        status: FINISHED, FAILED or KILLED.
        tags: more to say of the run.
    """
    if not is_enabled():
        return

    def finish() -> None:
        client = connect()
        for run_id in _parent_runs(client, tag, value):
            for key, text in (tags or {}).items():
                client.set_tag(run_id, key, text[:MAX_PARAMETER])
            if not os.environ.get("MLFLOW_RUN_ID"):
                _close_children(client, run_id)
                client.set_terminated(run_id, status)

    _guarded(finish)


def close_left_runs(ralm_run_id: str, status: str) -> bool:
    """Close what a pipeline run on this machine left open: its parent run and the runs of its tasks.

    Args:
        ralm_run_id: value of `RALM_RUN_TAG`; none of its processes may be alive.
        status: of the parent run, if it is open still: FAILED or KILLED.

    Returns:
        False if MLflow cannot do it now.
    """
    if not has_registry():
        return True

    def close() -> bool:
        client = connect()
        for run_id in _find_runs(client, RALM_RUN_TAG, ralm_run_id):
            _close_children(client, run_id)
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_tag(run_id, OUTCOME_TAG, "cancelled" if status == "KILLED" else status.lower())
                client.set_terminated(run_id, status)
        return True

    return bool(_guarded(close))


def _close_children(client: MlflowClient, parent: str) -> None:
    """A task that was killed cannot close its run."""
    for run_id in _find_runs(client, PARENT_RUN_TAG, parent):
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


def read_parent_tag(kfp_run_id: str, key: str) -> str:
    """A tag of the pipeline's parent run; empty where there is none, or no such run."""

    def read() -> str:
        client = connect()
        found = (
            client.get_run(run_id).data.tags.get(key, "") for run_id in _parent_runs(client, KFP_RUN_TAG, kfp_run_id)
        )
        return next((text for text in found if text), "")

    return (_guarded(read) or "") if is_enabled() else ""


def _parent_runs(client: MlflowClient, tag: str, value: str) -> list[str]:
    own = os.environ.get("MLFLOW_RUN_ID")
    if not own:
        return _find_runs(client, tag, value)
    top = _top_run(client, own)
    return [top] if top else []


def _top_run(client: MlflowClient, run_id: str) -> str:
    """The run of the pipeline that this one is a child of, or a child's child; empty for one that has no parent."""
    top = ""
    while parent := client.get_run(run_id).data.tags.get(PARENT_RUN_TAG):
        top = run_id = str(parent)
    return top


def _find_runs(client: MlflowClient, tag: str, value: str) -> list[str]:
    experiments = [item.experiment_id for item in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{tag}` = '{value}'")
    return [str(run.info.run_id) for run in runs]


@dataclasses.dataclass(frozen=True)
class StageRun:
    """The MLflow run of a stage; `run_id` is empty where nothing is tracked."""

    run_id: str = ""

    def record(self, manifest: Manifest, arguments: Mapping[str, object]) -> None:
        """Write what the stage was given and made: settings, input artifacts, counts, metrics, small files.

        Args:
            manifest: what the stage returned.
            arguments: what it was called with; tells the locations of the inputs.
        """
        if not self.run_id:
            return
        log_params({**plain_values(arguments), "config": manifest.config, "seed": manifest.seed})
        _guarded(lambda: _log_inputs(self.run_id, manifest, arguments))
        _guarded(lambda: _log_output(manifest))


@contextlib.contextmanager
def stage_run(stage: str, *, parent_run_id: str = "") -> Iterator[StageRun]:
    """Keep an MLflow run open while a stage works; `ralm/cli.py` wraps the call of the stage in it.

    Inside, `log_params`, `log_metrics` and `log_artifact` write to this run. It ends FINISHED, FAILED on an exception,
    KILLED on an interrupt. Where MLflow cannot be reached the stage runs all the same, with a warning.

    Args:
        stage: name of the stage, the run's name.
        parent_run_id: the pipeline's run; empty outside a pipeline.
    """
    global _active_run_id
    run_id = (_guarded(lambda: _open_run(stage, parent_run_id)) or "") if is_enabled() else ""
    _active_run_id = run_id
    status = "FAILED"
    try:
        yield StageRun(run_id)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        _active_run_id = ""
        if run_id:
            _guarded(lambda: _close_run(status))


@contextlib.contextmanager
def resumed_by_workers() -> Iterator[None]:
    """Inside, processes that are started write to the run of this one."""
    if not _active_run_id:
        yield
        return
    before = os.environ.get("MLFLOW_RUN_ID")
    os.environ["MLFLOW_RUN_ID"] = _active_run_id
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_RUN_ID"]
        else:
            os.environ["MLFLOW_RUN_ID"] = before


def _open_run(stage: str, parent_run_id: str) -> str:
    import mlflow

    connect()
    tags = {"ralm.stage": stage, **_source_tags()}
    if os.environ.get("MLFLOW_RUN_ID"):
        run = mlflow.start_run(log_system_metrics=True)
        mlflow.set_tags(tags)
    else:
        run = mlflow.start_run(run_name=stage, parent_run_id=parent_run_id or None, tags=tags, log_system_metrics=True)
    return str(run.info.run_id)


def _close_run(status: str) -> None:
    import mlflow

    mlflow.end_run(status)


def log_params(params: Mapping[str, object]) -> None:
    """Write settings to the stage's run; does nothing outside one."""

    def log(run_id: str, client: MlflowClient) -> None:
        values = _parameters(params)
        for start in range(0, len(values), PARAMETERS_IN_A_REQUEST):
            client.log_batch(run_id, params=values[start : start + PARAMETERS_IN_A_REQUEST])

    if params:
        _on_active_run(log)


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Write numbers to the stage's run; does nothing outside one. Values that are no finite numbers are left out."""

    def log(run_id: str, client: MlflowClient) -> None:
        import mlflow

        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        mlflow.log_metrics(finite, step=step, run_id=run_id)

    if metrics:
        _on_active_run(log)


def tag_parent_run(key: str, value: str) -> None:
    """Set a tag on the run of the pipeline, for its last task to read; does nothing outside a pipeline's stage."""

    def tag(run_id: str, client: MlflowClient) -> None:
        if top := _top_run(client, run_id):
            client.set_tag(top, key, value[:MAX_PARAMETER])

    _on_active_run(tag)


def tag_pipeline_run(key: str, value: str) -> None:
    """As `tag_parent_run`, for a task that has no run of its own; does nothing outside a pipeline's task."""
    known = ((KFP_RUN_TAG, "KFP_RUN_ID"), (RALM_RUN_TAG, "RALM_RUN_ID"))
    tag, run = next(((tag, os.environ[name]) for tag, name in known if os.environ.get(name)), ("", ""))
    if not is_enabled() or not (run or os.environ.get("MLFLOW_RUN_ID")):
        return

    def set_tag() -> None:
        client = connect()
        for run_id in _parent_runs(client, tag, run):
            client.set_tag(run_id, key, value[:MAX_PARAMETER])

    _guarded(set_tag)


def log_artifact(path: Path | str) -> None:
    """Attach one small file to the stage's run; does nothing outside one."""
    _on_active_run(lambda run_id, client: client.log_artifact(run_id, str(path)))


def _log_output(manifest: Manifest) -> None:
    place = files_location(manifest)
    numbers = numbers_of(manifest.counts, "counts.")
    for name, prefix in (("metrics.json", ""), ("timings.json", "timings.")):
        if exists(join(place, name)):
            numbers |= numbers_of(read_json(join(place, name)), prefix)
    log_metrics(numbers)
    for name in SMALL_FILES:
        if exists(join(place, name)):
            log_artifact(local_copy(join(place, name), identity=manifest.fingerprint))


def _log_inputs(run_id: str, manifest: Manifest, arguments: Mapping[str, object]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.tracking import MlflowClient

    datasets = []
    for name, fingerprint in manifest.inputs.items():
        source = json.dumps({"uri": arguments.get(name, ""), "fingerprint": fingerprint}, default=str)
        dataset = Dataset(name=name, digest=fingerprint[:MAX_DIGEST], source_type="artifact", source=source)
        datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", manifest.stage)]))
    if datasets:
        MlflowClient().log_inputs(run_id, datasets)


def _on_active_run(log: Callable[[str, MlflowClient], None]) -> None:
    run_id = _active_run_id
    if not run_id:
        return

    def call() -> None:
        from mlflow.tracking import MlflowClient

        log(run_id, MlflowClient())

    _guarded(call)


def _guarded(call: Callable[[], T]) -> T | None:
    """Tracking may fail for any reason (server, disk, lock); the stage must not, so the failure is only told."""
    try:
        return call()
    except RalmError:
        raise
    except Exception as error:
        logger.warning("tracking: %s: %s", type(error).__name__, first_line(error))
        return None


def first_line(error: Exception) -> str:
    """What went wrong, in one line without passwords; errors of a database may begin with advice to programmers."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
    return without_password(lines[0]) if lines else type(error).__name__


def without_password(text: str) -> str:
    """A text with URLs, without the names and passwords in these.

    >>> without_password("no answer from http://name:secret@host:5000/api")
    'no answer from http://host:5000/api'
    """
    return re.sub(r"//[^/@\s]*@", "//", text)


def _parameters(params: Mapping[str, object]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, str(value)[:MAX_PARAMETER]) for key, value in flatten(params).items()]


def plain_values(arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments that are no config: places, shard numbers."""
    return {name: value for name, value in arguments.items() if not dataclasses.is_dataclass(value)}


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings with dotted names.

    Example:
        >>> flatten({"config": {"seed": 1, "optimizer": {"name": "adam"}}})
        {'config.seed': 1, 'config.optimizer.name': 'adam'}
    """
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numbers_of(content: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """The numbers in a JSON document, by names that MLflow allows (`recall@10` becomes `recall_at_10`)."""
    return {
        key.replace("@", "_at_"): float(value)
        for key, value in flatten(content, prefix).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def git_commit() -> str:
    """The commit this code was built from: `RALM_GIT_COMMIT` in an image, the checkout's head elsewhere, or empty."""
    known = os.environ.get("RALM_GIT_COMMIT", "")
    root = Path(__file__).resolve().parents[1]
    if known or not (root / ".git").exists():
        return known
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _source_tags() -> dict[str, str]:
    commit = git_commit()
    return {"mlflow.source.git.commit": commit} if commit else {}
