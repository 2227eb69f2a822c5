"""The recurring run of a name: at most one is enabled, and a new one takes the place of the former."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from pipelines.connection import Remote, ServerError, create_once
from pipelines.remote import Uploaded, name_filter, named
from ralm.errors import ConfigError

logger = logging.getLogger(__name__)


def find_recurring(remote: Remote, name: str) -> list[Any]:
    """The recurring runs of a name in the namespace, of whatever experiment."""
    namespace, filter_ = remote.namespace or None, name_filter(name)
    answer = remote.client.list_recurring_runs(filter=filter_, namespace=namespace, page_size=100)
    return named(answer.recurring_runs, name)


def schedule(
    remote: Remote,
    uploaded: Uploaded,
    *,
    experiment_id: str,
    name: str,
    cron: str,
    parameters: dict[str, Any],
    service_account: str = "",
    follows_latest: bool = False,
) -> tuple[str, Any, list[str]]:
    """See to it that exactly one recurring run of the name is enabled, with these settings.

    Two are never enabled at once: a new one is made disabled, the former disabled, the new one enabled, the former
    deleted. Where a step fails, the former is enabled again. The API cannot change a recurring run, so that its
    description can say for good which settings it was made with.

    Args:
        remote: the server.
        uploaded: what is run.
        experiment_id: where the runs are listed.
        name: of the recurring run.
        cron: six fields, from `parse_cron`.
        parameters: values of the pipeline's inputs.
        service_account: Kubernetes account of the runs; empty: the server's.
        follows_latest: run the pipeline's newest version of the day, not `uploaded` for good.

    Returns:
        What was done (`created`, `kept`, `enabled`, `replaced`), the recurring run, and the ids of those it replaced.
    """
    wanted = _describe(remote, uploaded, experiment_id, name, cron, parameters, service_account, follows_latest)
    found = find_recurring(remote, name)
    same = sorted((run for run in found if run.description == wanted.description), key=_is_enabled)
    if not found:
        return "created", _create(remote, wanted, "ENABLE"), []
    new = same[-1] if same else _create(remote, wanted, "DISABLE")
    former = [run for run in found if run is not new]
    if not former and _is_enabled(new):
        return "kept", new, []
    _hand_over(remote, new, [run for run in former if _is_enabled(run)])
    for run in former:
        try:
            _delete(remote, run)
        except ServerError as error:
            logger.warning("recurring run %s is left behind, disabled: %s", run.recurring_run_id, error)
    return ("replaced" if former else "enabled"), new, [str(run.recurring_run_id) for run in former]


def _describe(
    remote: Remote,
    uploaded: Uploaded,
    experiment_id: str,
    name: str,
    cron: str,
    parameters: dict[str, Any],
    service_account: str,
    follows_latest: bool,
) -> Any:
    """The request, but for its mode. kfp's own method insists on a version, which `follows_latest` does not name."""
    import kfp_server_api as api

    version_id = None if follows_latest else uploaded.version_id
    wanted = api.V2beta1RecurringRun(
        display_name=name,
        experiment_id=experiment_id,
        namespace=remote.namespace or None,
        pipeline_version_reference=api.V2beta1PipelineVersionReference(
            pipeline_id=uploaded.pipeline_id, pipeline_version_id=version_id
        ),
        runtime_config=api.V2beta1RuntimeConfig(parameters=parameters),
        service_account=service_account or None,
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
        no_catchup=True,
        max_concurrency=1,
    )
    plain = api.ApiClient().sanitize_for_serialization(wanted)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    runs = "the newest version" if follows_latest else f"version {uploaded.version}"
    wanted.description = f"ralm pipeline schedule: {cron}, {runs}; settings {digest[:16]}"
    return wanted


def _is_enabled(run: Any) -> bool:
    return bool(run.mode == "ENABLE")


def _create(remote: Remote, wanted: Any, mode: str) -> Any:
    wanted.mode = mode
    create = remote.client.recurring_runs.recurring_run_service_create_recurring_run

    def find() -> Any:
        runs = find_recurring(remote, wanted.display_name)
        return next((run for run in runs if run.description == wanted.description), None)

    return create_once(lambda: create(recurring_run=wanted), find)


def _hand_over(remote: Remote, new: Any, former: list[Any]) -> None:
    """Disable the former ones, enable the new one; undo that where it cannot be done."""
    try:
        for run in former:
            _switch(remote, run, "DISABLE")
        _switch(remote, new, "ENABLE")
    except BaseException as error:  # a Ctrl-C in between must not leave the user without a schedule either
        note = _take_back(remote, new, former)
        if isinstance(error, ServerError):
            raise ServerError(f"{error}; {note}", status=error.status) from error
        logger.warning("%s", note)
        raise


def _take_back(remote: Remote, new: Any, former: list[Any]) -> str:
    try:
        _switch(remote, new, "DISABLE")
        for run in former:
            _switch(remote, run, "ENABLE")
    except ServerError:
        return "whether a schedule is enabled now is not known: give the same command again when the server answers"
    return "the former schedule is enabled as before" if former else "no schedule of this name is enabled"


def _switch(remote: Remote, run: Any, mode: str) -> None:
    """Enable or disable; doing it twice is harmless, so a lost answer is only looked up."""
    number, client = run.recurring_run_id, remote.client
    switch = client.enable_recurring_run if mode == "ENABLE" else client.disable_recurring_run

    def find() -> bool | None:
        return client.get_recurring_run(number).mode == mode or None

    create_once(lambda: bool(switch(number)), find)


def _delete(remote: Remote, run: Any) -> None:
    number = run.recurring_run_id

    def find() -> bool | None:
        return number not in {left.recurring_run_id for left in find_recurring(remote, run.display_name)} or None

    create_once(lambda: bool(remote.client.delete_recurring_run(number)), find)


def stop(remote: Remote, name: str, *, deletes: bool) -> list[str]:
    """Disable or delete all recurring runs of a name.

    Returns:
        Their ids.

    Raises:
        ConfigError: there is none.
    """
    found = find_recurring(remote, name)
    if not found:
        raise ConfigError(f"name: {remote.host} has no recurring run {name!r}")
    for run in found:
        if deletes:
            _delete(remote, run)
        elif _is_enabled(run):
            _switch(remote, run, "DISABLE")
    return [str(run.recurring_run_id) for run in found]
