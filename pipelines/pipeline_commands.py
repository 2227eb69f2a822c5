"""The commands `ralm pipeline ...`: compile, lint and run here, submit and schedule on a Kubeflow Pipelines server."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from pipelines import package_runs, recurring, remote, runs
from pipelines.compile import (
    COMPILED,
    IMAGES,
    NEVER_CACHED,
    PIPELINES,
    PROFILES,
    RUNNERS,
    compile_pipeline,
    compiled_file,
)
from pipelines.connection import Remote, Server, ServerError, connect, quiet, require_kfp
from pipelines.cron import parse_cron
from pipelines.package import Package, parse_parameters, read_package, without_caching
from pipelines.parser import Parser, add_command, add_runner_flag
from ralm.errors import ConfigError, RalmError


def add_pipeline_commands(parser: argparse.ArgumentParser) -> None:
    """Declare the commands below `ralm pipeline`."""
    words = "compile|lint|run|submit|schedule"
    commands = parser.add_subparsers(metavar=words, required=True, parser_class=Parser)
    _add_compile(commands)
    _add_lint(commands)
    _add_run(commands)
    _add_submit(commands)
    _add_schedule(commands)


def _add_compile(commands: Any) -> None:
    text = "Write the compiled graphs, one file for each pipeline and profile, and check them."
    parser = add_command(commands, "compile", run_compile, lambda result: "\n".join(result["files"]), text)
    parser.add_argument("--output", default="", metavar="DIR", help="folder; empty: the committed pipelines/compiled")
    parser.add_argument("--pipeline", default="", metavar="NAME", help="only this one")
    parser.add_argument("--profile", choices=("", *PROFILES), default="", help="only this one")
    parser.add_argument(
        "--cluster", default="", metavar="FILE", help="YAML file of what your cluster has, for the profile cluster"
    )


def run_compile(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm pipeline compile`."""
    require_kfp()
    from pipelines.profiles import read_cluster

    cluster = read_cluster(arguments.cluster) if arguments.cluster else None
    if cluster and not arguments.output:
        raise ConfigError("compile: --cluster goes with --output; the committed files are those without it")
    folder = Path(arguments.output) if arguments.output else COMPILED
    wanted = [(name, profile) for name in PIPELINES for profile in PROFILES]
    files = [
        compile_pipeline(profile, folder, name, cluster)
        for name, profile in wanted
        if arguments.pipeline in ("", name) and arguments.profile in ("", profile)
    ]
    if not files:
        raise ConfigError(f"pipeline: expected one of {', '.join(PIPELINES)}, found {arguments.pipeline!r}")
    return {"files": [str(path) for path in files]}


def _add_run(commands: Any) -> None:
    text = (
        "Run a compiled pipeline on this machine. Of train-and-evaluate each input is a flag: settings come from the "
        "recipe, then --config, then the flags; what is not given is as in the recipe. The inputs of the others are "
        "given with --param."
    )
    parser = add_command(commands, "run", run_pipeline, show_any_run, text)
    parser.add_argument("--pipeline", default=PIPELINES[0], metavar="NAME", help=f"one of {', '.join(PIPELINES)}")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="value of one of its inputs; repeatable"
    )
    parser.add_argument("--recipe", default=None, help="named complete run to start from; by default quickstart")
    add_runner_flag(parser)
    parser.add_argument("--config", default="", metavar="FILE", help="YAML or JSON file with any of these settings")
    for name, kind in runs.INPUTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind.type, default=None, help=kind.help)


def run_pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm pipeline run`."""
    flags = {name: getattr(arguments, name) for name in runs.INPUTS if getattr(arguments, name) is not None}
    if arguments.pipeline == PIPELINES[0]:
        if arguments.param:
            raise ConfigError(f"param: {arguments.pipeline} has a flag for each input, such as --passages")
        inputs = {**(runs.read_inputs(arguments.config) if arguments.config else {}), **flags}
        recipe = arguments.recipe or "quickstart"
        return dataclasses.asdict(runs.run_recipe(recipe, inputs, runner=arguments.runner))
    if arguments.config:
        raise ConfigError(f"config: goes with {PIPELINES[0]}; give --param NAME=VALUE")
    package = read_package(_compiled(arguments.pipeline, RUNNERS[arguments.runner]))
    named = {**({"recipe": arguments.recipe} if arguments.recipe else {}), **flags}
    words = [f"{name}={value}" for name, value in named.items()]
    parameters = parse_parameters(package, [*words, *arguments.param])
    return dataclasses.asdict(package_runs.run_package(package, parameters, runner=arguments.runner))


def show_any_run(result: dict[str, Any]) -> str:
    """A run's summary for people."""
    return runs.show_run(result) if "registration" in result else package_runs.show_stages(result)


def _add_lint(commands: Any) -> None:
    text = (
        "Check compiled pipelines: names, types and order of the graph, images, and for a cluster limits and retries."
    )
    parser = add_command(commands, "lint", run_lint, show_lint, text)
    parser.add_argument("files", nargs="+", metavar="FILE", help="compiled pipeline")
    parser.add_argument("--cluster", action="store_true", help="ask of all files what *.cluster.yaml are asked")


def run_lint(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm pipeline lint`."""
    require_kfp()
    from pipelines.lint import lint_pipeline

    problems = {
        file: lint_pipeline(
            Path(file),
            allowed_images=_allowed_images(Path(file)),
            is_for_cluster=arguments.cluster or _is_for_cluster(Path(file)),
            never_cached=NEVER_CACHED,
        )
        for file in arguments.files
    }
    result = {"problems": problems}
    found = sum(map(len, problems.values()))
    if found:
        raise _failed(arguments, result, ConfigError(f"{found} problems in {len(problems)} files"))
    return result


def show_lint(result: dict[str, Any]) -> str:
    """What is wrong with compiled files, for people."""
    return "\n".join(
        f"{file}: {problem}"
        for file, problems in result["problems"].items()
        for problem in problems or ["nothing wrong"]
    )


def _is_for_cluster(path: Path) -> bool:
    return path.name.endswith(".cluster.yaml")


def _allowed_images(path: Path) -> list[str]:
    """Our images, all from one registry: the first that the file names."""
    names = "|".join(map(re.escape, IMAGES))
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(rf"\bimage: (\S+/)?(?:{names})\b", text)
    return [f"{found[1] or ''}{image}" if found else image for image in IMAGES]


def _failed(arguments: argparse.Namespace, result: dict[str, Any], error: RalmError) -> RalmError:
    """Print a result that is no success, as a command prints it; the error then says so and gives the exit code."""
    print(json.dumps(result, ensure_ascii=False) if arguments.json else arguments.show(result))
    return error


def _add_upload_flags(parser: argparse.ArgumentParser) -> None:
    """What `submit` and `schedule` share: which file, with what inputs, and where to."""
    parser.add_argument("--pipeline", default="train-and-evaluate", metavar="NAME", help="which pipeline")
    parser.add_argument("--profile", default="cluster", help="which of its compiled files")
    parser.add_argument("--file", default="", help="a compiled pipeline instead of --pipeline and --profile")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="value of one of its inputs; repeatable"
    )
    parser.add_argument("--experiment", default="ralm", help="where the runs are listed; made where it is missing")
    parser.add_argument("--service-account", default="", metavar="NAME", help="Kubernetes account of the runs")
    parser.add_argument("--host", default="", metavar="URL", help="of the server; else from KFP_ENDPOINT")
    parser.add_argument("--namespace", default="", metavar="NAME", help="yours, on a server for several users")
    parser.add_argument(
        "--token-file", default="", metavar="FILE", help="bearer token; else from RALM_KFP_TOKEN, else the pod's own"
    )
    parser.add_argument("--ca-file", default="", metavar="FILE", help="authorities to trust, in PEM")
    parser.add_argument("--timeout-s", type=float, default=30.0, metavar="S", help="limit of one request")


def _read_package(arguments: argparse.Namespace) -> Package:
    return read_package(Path(arguments.file) if arguments.file else _compiled(arguments.pipeline, arguments.profile))


def _compiled(pipeline: str, profile: Any) -> Path:
    for flag, known, found in (("pipeline", PIPELINES, pipeline), ("profile", PROFILES, profile)):
        if found not in known:
            raise ConfigError(f"{flag}: expected one of {', '.join(known)}, found {found!r}")
    return compiled_file(profile, pipeline=pipeline)


def _check(package: Package) -> None:
    require_kfp()
    from pipelines.lint import check_pipeline

    is_for_cluster = _is_for_cluster(package.path)
    images = _allowed_images(package.path)
    check_pipeline(package.path, allowed_images=images, is_for_cluster=is_for_cluster, never_cached=NEVER_CACHED)


def _connect(arguments: argparse.Namespace) -> Remote:
    return connect(Server(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Server)}))


def _add_submit(commands: Any) -> None:
    text = (
        "Upload a compiled pipeline to a Kubeflow Pipelines server and run it. The same file is uploaded once; a "
        "changed one becomes a new version."
    )
    parser = add_command(commands, "submit", run_submit, show_submitted, text)
    _add_upload_flags(parser)
    parser.add_argument("--run-name", default="", metavar="NAME", help="of the run; empty: pipeline, time and a number")
    parser.add_argument("--no-cache", action="store_true", help="run every task, whatever the server has kept")
    parser.add_argument("--wait", action="store_true", help="wait for the end; exit with 1 if the run failed")


def run_submit(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm pipeline submit`."""
    package = _read_package(arguments)
    _check(package)
    parameters = parse_parameters(package, arguments.param)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        if arguments.no_cache:
            package = without_caching(package, Path(folder))
        there = _connect(arguments)
        experiment_id = remote.find_experiment(there, arguments.experiment)
        uploaded = remote.upload(there, package)
        run = remote.start_run(
            there,
            uploaded,
            experiment_id=experiment_id,
            name=arguments.run_name or remote.unique_name(package.name),
            parameters=parameters,
            service_account=arguments.service_account,
        )
    result = {
        "run_id": run.run_id,
        "run_name": run.display_name,
        "url": there.link("runs", run.run_id),
        "state": run.state,
        "pipeline": package.name,
        **dataclasses.asdict(uploaded),
        "experiment_id": experiment_id,
        "namespace": there.namespace,
    }
    if arguments.wait:
        ended = remote.wait(there, run.run_id)
        result["state"] = ended.state
        if not remote.DONE[ended.state]:
            reason = f": {ended.error.message}" if ended.error and ended.error.message else ""
            raise _failed(arguments, result, ServerError(f"run {run.run_id} ended as {ended.state}{reason}"))
    return result


def show_submitted(result: dict[str, Any]) -> str:
    """A submitted run for people."""
    return "\n".join(
        [
            f"run {result['run_name']!r} ({result['run_id']}): {(result['state'] or 'PENDING').lower()}",
            f"of {_show_version(result)}",
            result["url"],
        ]
    )


def _show_version(result: dict[str, Any]) -> str:
    return f"{result['pipeline']} {result['version']} ({'uploaded' if result['is_new'] else 'was there already'})"


def _add_schedule(commands: Any) -> None:
    text = (
        "Upload a compiled pipeline to a Kubeflow Pipelines server and run it by the clock: one run at a time, and "
        "missed ones are not made up for. The same command again changes nothing; with other settings it replaces the "
        "schedule of that name."
    )
    parser = add_command(commands, "schedule", run_schedule, show_scheduled, text)
    what = parser.add_mutually_exclusive_group(required=True)
    words = "when, as '0 3 * * 1', or '0 0 3 * * 1' with the second first; the server's time zone, UTC if it has none"
    what.add_argument("--cron", default="", metavar="EXPRESSION", help=words)
    what.add_argument("--disable", action="store_true", help="stop the schedule of that name, and keep it")
    what.add_argument("--delete", action="store_true", help="remove the schedule of that name")
    parser.add_argument("--name", default="", help="of the schedule; empty: that of the pipeline")
    parser.add_argument(
        "--follow-latest", action="store_true", help="run the newest version of the pipeline, not the one of this file"
    )
    _add_upload_flags(parser)


def run_schedule(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm pipeline schedule`."""
    if arguments.disable or arguments.delete:
        name = arguments.name or _read_package(arguments).name
        with quiet():
            there = _connect(arguments)
            stopped = recurring.stop(there, name, deletes=arguments.delete)
        return {"name": name, "done": "deleted" if arguments.delete else "disabled", "recurring_run_ids": stopped}
    cron = parse_cron(arguments.cron)
    package = _read_package(arguments)
    _check(package)
    parameters = parse_parameters(package, arguments.param)
    name = arguments.name or package.name
    with quiet():
        there = _connect(arguments)
        experiment_id = remote.find_experiment(there, arguments.experiment)
        uploaded = remote.upload(there, package)
        done, run, replaced = recurring.schedule(
            there,
            uploaded,
            experiment_id=experiment_id,
            name=name,
            cron=cron,
            parameters=parameters,
            service_account=arguments.service_account,
            follows_latest=arguments.follow_latest,
        )
    return {
        "name": name,
        "done": done,
        "recurring_run_ids": [run.recurring_run_id],
        "replaced": replaced,
        "cron": cron,
        "url": there.link("recurringrun", run.recurring_run_id),
        "pipeline": package.name,
        **dataclasses.asdict(uploaded),
        "follows_latest": arguments.follow_latest,
        "experiment_id": experiment_id,
        "namespace": there.namespace,
    }


def show_scheduled(result: dict[str, Any]) -> str:
    """A schedule for people."""
    lines = [f"schedule {result['name']!r} {result['done']}: {', '.join(result['recurring_run_ids'])}"]
    if "cron" in result:
        latest = ", and every newer version" if result["follows_latest"] else ""
        lines += [f"{result['cron']}: {_show_version(result)}{latest}", result["url"]]
        lines += [f"in place of {number}, which is deleted" for number in result["replaced"]]
    return "\n".join(lines)
