"""Work on a Kubeflow Pipelines server: upload a file once, start a run once, wait for its end."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from pipelines.connection import Remote, ServerError, create_once
from pipelines.package import Package

logger = logging.getLogger(__name__)

POLL_S: Final = 10.0
PATIENCE_S: Final = 300.0
"""How long a server may be away while a run is waited for."""
DONE: Final = {"SUCCEEDED": True, "SKIPPED": True, "FAILED": False, "CANCELED": False}
"""States in which a run stays, and whether that is a good end."""


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A pipeline version on the server."""

    pipeline_id: str
    version_id: str
    version: str
    is_new: bool
    """False: the server had this very file already."""


def name_filter(name: str) -> str:
    """The API's filter for things of a name; the server decodes it once more than HTTP does."""
    return quote(json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]}))


def named(things: Iterable[Any] | None, name: str) -> list[Any]:
    """Those of a listing that have the name: databases compare without case."""
    return [thing for thing in things or () if thing.display_name == name]


def find_experiment(remote: Remote, name: str) -> str:
    """Id of an experiment, made where it is missing."""
    client, filter_ = remote.client, name_filter(name)

    def find() -> Any:
        answer = client.list_experiments(filter=filter_, namespace=remote.namespace)
        return next(iter(named(answer.experiments, name)), None)

    found = find() or create_once(lambda: client.create_experiment(name, namespace=remote.namespace), find)
    return str(found.experiment_id)


def upload(remote: Remote, package: Package) -> Uploaded:
    """Make the file a version of the pipeline of its name, unless it is one already.

    The pipeline itself is made empty at first: a file that comes with it would be called like the pipeline, and could
    not be recognised by its version's name.
    """
    import kfp_server_api

    client = remote.client

    def find() -> Any:
        answer = client.list_pipelines(filter=name_filter(package.name), namespace=remote.namespace or None)
        return next(iter(named(answer.pipelines, package.name)), None)

    def find_version() -> Any:
        answer = client.list_pipeline_versions(pipeline_id, filter=name_filter(package.version))
        return next(iter(named(answer.pipeline_versions, package.version)), None)

    empty = kfp_server_api.V2beta1Pipeline(
        display_name=package.name, description=package.description, namespace=remote.namespace or None
    )
    pipeline = find() or create_once(lambda: client.pipelines.pipeline_service_create_pipeline(pipeline=empty), find)
    pipeline_id = str(pipeline.pipeline_id)
    had = find_version()
    version = had or create_once(
        lambda: client.upload_pipeline_version(
            str(package.path), package.version, pipeline_id=pipeline_id, description=f"sha256 {package.sha256}"
        ),
        find_version,
    )
    return Uploaded(
        pipeline_id=pipeline_id,
        version_id=str(version.pipeline_version_id),
        version=package.version,
        is_new=had is None,
    )


def start_run(
    remote: Remote,
    uploaded: Uploaded,
    *,
    experiment_id: str,
    name: str,
    parameters: dict[str, Any],
    service_account: str = "",
) -> Any:
    """Start one run, and never two: after a lost answer it is looked for by its name.

    Returns:
        The server's run.
    """
    client = remote.client

    def find() -> list[Any]:
        answer = client.list_runs(experiment_id=experiment_id, filter=name_filter(name), page_size=100)
        return named(answer.runs, name)

    def start() -> Any:
        return client.run_pipeline(
            experiment_id,
            name,
            params=parameters,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            service_account=service_account or None,
        )

    before = {run.run_id for run in find()}
    try:
        return create_once(start, lambda: next((run for run in find() if run.run_id not in before), None))
    except KeyboardInterrupt:
        raise ServerError(f"interrupted while run {name!r} was started: it may be there", exit_code=130) from None


def unique_name(name: str) -> str:
    """A run's name that no other run has."""
    return f"{name} {time.strftime('%Y-%m-%d %H:%M:%S')} {uuid.uuid4().hex[:8]}"


def wait(remote: Remote, run_id: str) -> Any:
    """Wait until a run has ended; kfp's own loop does not see that a run was cancelled, nor outlives a short failure.

    Returns:
        The server's run.

    Raises:
        ServerError: the server was away for too long, or the user stopped waiting; the run goes on either way.
    """
    note = f"run {run_id} goes on: {remote.link('runs', run_id)}"
    state, answered_at = "", time.monotonic()
    try:
        while True:
            try:
                run = remote.client.get_run(run_id)
            except ServerError as error:
                if (error.status and error.status < 500) or time.monotonic() - answered_at > PATIENCE_S:
                    raise ServerError(f"{error}; {note}", status=error.status) from error
                logger.warning("%s; asking again", error)
            else:
                answered_at = time.monotonic()
                if run.state != state:
                    state = run.state
                    logger.info("%s: %s", remote.link("runs", run_id), state)
                if state in DONE:
                    return run
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise ServerError(f"stopped waiting; {note}", exit_code=130) from None
