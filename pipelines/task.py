"""`ralm task NAME`: one task of a pipeline as a command, for schedulers other than Kubeflow Pipelines (`deploy/argo/`).

A stage runs as it does in a graph: its MLflow run is a child of the pipeline's run, and it hands over a reference into
the store. Steps are what is no stage; what they find goes to stdout as JSON, and into files for schedulers that pass
values on by files. The order of the tasks is the scheduler's business; `pipelines/reindex.py` says what it has to be.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from components.plan.stage import Changes, Plan
from components.plan.stage import plan as plan_stages
from components.select.stage import select
from components.watch.stage import watch
from ralm.cli import build_parser, check_config_files, exit_code, normalise_flags, run_step, run_task
from ralm.errors import ConfigError

STAGES: Final = ("download", "embed", "index", "train", "evaluate", "report", "compare", "gate", "register")


class Started(NamedTuple):
    """What `start` made."""

    parent_run_id: str
    """MLflow run of the pipeline run; empty where nothing is tracked."""


class Finished(NamedTuple):
    """What `finish` found."""

    outcome: str


def start(*, recipe: str, run_id: str) -> Started:
    """Make the MLflow run of a pipeline run, or find it where the task is tried again.

    Args:
        recipe: name of the recipe, the run's name.
        run_id: identity of the pipeline run at the scheduler, as in the RALM_RUN_ID of every task.
    """
    from ralm.tracking import start_parent_run

    return Started(start_parent_run(recipe, kfp_run_id=run_id, params={"recipe": recipe}))


def plan(*, recipe: str, changes: Changes = Changes()) -> Plan:  # noqa: B008 - frozen
    """Merge a recipe with what a run changes in it into the config of each stage and the list of shards.

    Args:
        recipe: name of the recipe.
        changes: what this run changes.
    """
    from pipelines.recipes import recipes_json

    return plan_stages(recipes=recipes_json(), recipe=recipe, changes=changes)


def finish(*, pipeline: str, run_id: str, state: str, error: str = "") -> Finished:
    """Close the MLflow run of a pipeline run, and tell people what failed or was refused.

    Args:
        pipeline: its name.
        run_id: identity of the pipeline run at the scheduler.
        state: how the scheduler says it ended, such as Succeeded, Failed, Error or Cancelled, in any case of letters.
        error: what failed, where the scheduler knows.
    """
    from components.track.stage import finish as finish_run

    plain = state.upper().replace("ERROR", "FAILED")
    return Finished(finish_run(pipeline=pipeline, kfp_run_id=run_id, state=plain, error=error))


STEPS: Final[Mapping[str, Callable[..., Any]]] = {
    "start": start,
    "select": select,
    "plan": plan,
    "watch": watch,
    "finish": finish,
}


def run(argv: Sequence[str]) -> int:
    """Run `ralm task`.

    Returns:
        Exit code: 0 done, 2 bad input, 130 interrupted, 1 anything else.
    """
    with exit_code() as outcome:
        name = argv[0] if argv else ""
        if name not in (*STEPS, *STAGES):
            raise ConfigError(f"task: expected one of {', '.join((*STEPS, *STAGES))}, found {name!r}")
        arguments, options = _parse(task_parser(name), argv[1:], name)
        try:
            outcome.code = (
                _run_step(name, arguments, options) if name in STEPS else _run_stage(name, arguments, options)
            )
        except SystemExit as end:  # the error is told already
            outcome.code = int(end.code or 0)
    return outcome.code


def task_parser(name: str) -> Any:
    """The parser of a task: what the stage or step takes, and what the scheduler wants to know or tells."""
    parser = build_parser(_function(name), prog=f"ralm task {name}")
    if name in STEPS:
        parser.add_argument("--outputs", default="", help="folder that receives a file for each value found")
    else:
        parser.add_argument("--parent_run_id", default="", help="MLflow run of the pipeline run, as `start` found it")
    return parser


def _function(name: str) -> Callable[..., Any]:
    if name in STEPS:
        return STEPS[name]
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(f"components.{name}.stage"), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name} needs the package {error.name}; use the image for models") from error
    return function


def _parse(parser: Any, argv: Sequence[str], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the function, and the options of the command."""
    flags = normalise_flags(argv)
    if name in STAGES:
        check_config_files(_function(name), flags)
    arguments = dict(parser.instantiate(parser.parse_args(flags)))
    options = {option: arguments.pop(option) for option in ("json", "verbose")}
    extra = "outputs" if name in STEPS else "parent_run_id"
    return arguments, {**options, extra: arguments.pop(extra)}


def _run_stage(name: str, arguments: dict[str, Any], options: Mapping[str, Any]) -> int:
    config = json.dumps(dataclasses.asdict(arguments.pop("config")))
    manifest = run_task(_function(name), parent_run_id=options["parent_run_id"], config=config, **arguments)
    if options["json"]:
        print(json.dumps({**manifest.to_json(), "reused": manifest.reused}, ensure_ascii=False))
    return 0


def _run_step(name: str, arguments: dict[str, Any], options: Mapping[str, Any]) -> int:
    found = run_step(_function(name), **arguments)._asdict()
    if options["outputs"]:
        folder = Path(options["outputs"])
        folder.mkdir(parents=True, exist_ok=True)
        for field, value in found.items():
            (folder / field).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    print(json.dumps(found, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
