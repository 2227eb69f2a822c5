"""From a command line or a pipeline task to a typed call of a stage, with logging, tracking and exit codes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ralm.artifacts.files import join, local_copy, read_json, read_settings
from ralm.artifacts.manifest import Manifest
from ralm.artifacts.store import files_location, handing_over_by_reference
from ralm.errors import ConfigError, RalmError
from ralm.log import is_distributed_worker, is_first_worker, set_up_logging

logger = logging.getLogger(__name__)
Stage = Callable[..., Manifest]
T = typing.TypeVar("T")

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run_stage(stage: Stage, argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run a stage from command-line arguments.

    Every parameter of the stage is a flag; the fields of its config are `--config.NAME`, `--config` takes a YAML or
    JSON file or a JSON string; a flag wins over the file. `--json` prints the manifest as one JSON object on stdout.

    Returns:
        Exit code: 0 done, 2 bad input or setting, 130 interrupted, 1 anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with exit_code() as outcome:
        parser = build_parser(stage, prog=prog)
        flags = normalise_flags(arguments)
        check_config_files(stage, flags)
        namespace = parser.parse_args(flags)
        as_json = namespace.pop("json")
        set_up_logging("DEBUG" if namespace.pop("verbose") else None)
        manifest = call_tracked(stage, dict(parser.instantiate(namespace)))
        if not is_first_worker():
            return outcome.code
        if as_json:
            print(json.dumps({**manifest.to_json(), "reused": manifest.reused}, ensure_ascii=False))
        else:
            logger.info("%s", describe(manifest))
    return outcome.code


def run_task(
    stage: Stage,
    *,
    parent_run_id: str = "",
    config: str = "{}",
    views: Any = None,
    numbers: Any = None,
    **arguments: Any,
) -> Manifest:
    """Run a stage inside a pipeline task: config as JSON, outputs handed over as references into the store.

    Args:
        stage: its function.
        parent_run_id: MLflow run of the pipeline run.
        config: of the stage.
        views: mapping of files of the artifact to where the pipeline's user interface wants them, to show them.
        numbers: dict that receives what metrics.json holds, for the user interface.
        **arguments: of the stage.

    Raises:
        SystemExit: with the exit code of `run_stage`, after the error was logged.
    """
    set_up_logging()
    with exit_code() as outcome, _telling_pipeline(stage.__name__), handing_over_by_reference():
        arguments["config"] = parse_config(config_type(stage), config)
        manifest = call_tracked(stage, arguments, parent_run_id=parent_run_id)
        _show(manifest, views or {}, numbers)
        return manifest
    raise SystemExit(outcome.code)


def _show(manifest: Manifest, views: Mapping[str, str], numbers: dict[str, Any] | None) -> None:
    from ralm.tracking import numbers_of

    place = files_location(manifest)
    for name, target in views.items():
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local_copy(join(place, name), identity=manifest.fingerprint), path)
        path.chmod(0o644)
    if numbers is not None:
        numbers.update(numbers_of(read_json(join(place, "metrics.json"))))


def run_step(step: Callable[..., T], **arguments: Any) -> T:
    """Call what is no stage inside a pipeline task: it takes no config and makes no artifact of its own.

    Raises:
        SystemExit: with the exit code of `run_stage`, after the error was logged.
    """
    set_up_logging()
    with exit_code() as outcome, _telling_pipeline(step.__name__):
        return step(**arguments)
    raise SystemExit(outcome.code)


@contextmanager
def _telling_pipeline(task: str) -> Iterator[None]:
    """Note an error on the run of the pipeline, whose last task tells people."""
    try:
        yield
    except Exception as error:
        from ralm import tracking

        told = one_line(error).removeprefix(f"{task}: ")
        tracking.tag_pipeline_run(tracking.ERROR_TAG, f"{task}: {told}")
        raise


def call_tracked(stage: Stage, arguments: dict[str, Any], *, parent_run_id: str = "") -> Manifest:
    """Call a stage inside a tracking run, and note in `$RALM_EVENTS` (a file of JSON lines) how it went."""
    from ralm import tracking

    name = stage.__name__
    started_at = time.monotonic()
    with tracking.stage_run(name, parent_run_id=parent_run_id) as run:
        manifest = stage(**arguments)
        if not (is_distributed_worker() and "MLFLOW_RUN_ID" in os.environ):  # whose run it is records it
            run.record(manifest, arguments)
    events = os.environ.get("RALM_EVENTS") if is_first_worker() else None
    if events:
        event = {
            "stage": name,
            "kind": manifest.kind,
            "uri": files_location(manifest),
            "fingerprint": manifest.fingerprint,
            "counts": dict(manifest.counts),
            "reused": manifest.reused,
            "elapsed_s": round(time.monotonic() - started_at, 2),
        }
        with Path(events).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")
    return manifest


def describe(manifest: Manifest) -> str:
    """One line on an artifact for people."""
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(manifest.counts.items()))
    state = "reused" if manifest.reused else "done"
    return f"{manifest.kind} {state}: {counts or 'no counts'} [{manifest.fingerprint[:12]}]"


class Outcome:
    """The exit code of a command."""

    code: int = 0


@contextmanager
def exit_code() -> Iterator[Outcome]:
    """Turn errors into exit codes and one line on stderr. SIGTERM ends the work like Ctrl-C, with its clean-up."""
    outcome = Outcome()

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        before = None
    try:
        yield outcome
    except RalmError as error:
        outcome.code = error.exit_code
        print(f"ralm: error: {one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        outcome.code = EXIT_INTERRUPTED
        if is_first_worker():
            print("ralm: interrupted; the same command goes on from what is finished", file=sys.stderr)
    except BrokenPipeError:
        outcome.code = EXIT_FAILED
        sys.stderr.close()
    except OSError as error:
        outcome.code = EXIT_BAD_INPUT if isinstance(error, PermissionError) else EXIT_FAILED
        logger.debug("traceback", exc_info=True)
        print(f"ralm: error: {_os_message(error)}", file=sys.stderr)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _os_message(error: OSError) -> str:
    """The file and the reason, without the error's number."""
    place = error.filename2 or error.filename
    return f"{place}: {error.strerror.lower()}" if place and error.strerror else one_line(error)


def config_type(stage: Stage) -> type[Any]:
    """The dataclass of a stage's `config` parameter."""
    return typing.cast(type[Any], typing.get_type_hints(stage)["config"])


def build_parser(stage: Stage, *, prog: str | None = None) -> Any:
    """A parser whose flags are the stage's parameters; jsonargparse reads types, defaults and docstrings."""
    import jsonargparse

    parser = _parser(jsonargparse, prog=prog or f"python -m components.{stage.__name__}", description=_summary(stage))
    parser.add_function_arguments(stage, as_group=False)
    parser.add_argument("--json", action="store_true", help="print the manifest as one JSON object on stdout")
    parser.add_argument("--verbose", action="store_true", help="log details")
    return parser


def check_config_files(stage: Stage, flags: Sequence[str]) -> None:
    """Look for unknown settings in the files given with `--config`; the parser would not name the file.

    Raises:
        ConfigError: an unknown setting, or no YAML.
        DataError: no such file.
    """
    for place, word in enumerate(flags):
        name, equals, value = word.partition("=")
        file = value if equals else "".join(flags[place + 1 : place + 2])
        if name == "--config" and file and not file.lstrip().startswith("{"):
            _check_settings(read_settings(file), config_type(stage), where=file)


def _check_settings(settings: Mapping[str, Any], kind: type[Any], *, where: str) -> None:
    known = typing.get_type_hints(kind)
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown setting {name!r}, expected one of {', '.join(known)}")
        if dataclasses.is_dataclass(known[name]) and isinstance(value, Mapping):
            _check_settings(value, typing.cast(type[Any], known[name]), where=f"{where}: {name}")


def parse_config(kind: type[Any], text: str) -> Any:
    """A config dataclass from a JSON object.

    Raises:
        ConfigError: no JSON object, an unknown key, or a value of the wrong type.
    """
    import jsonargparse

    try:
        plain = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"config: no JSON: {error}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"config: expected a JSON object, found {type(plain).__name__}")
    parser = _parser(jsonargparse, prog=kind.__name__)
    parser.add_class_arguments(kind, "config")
    parsed = parser.parse_object({"config": plain})
    return parser.instantiate(parsed).config


def _parser(module: Any, **options: Any) -> Any:
    """An argument parser that raises `ConfigError` instead of printing its usage and exiting."""
    module.set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Parser(module.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
            raise ConfigError(f"{self.prog}: {_readable(message)}")

        def format_help(self) -> str:
            return re.sub(r"--[a-z][\w.]*", lambda flag: flag[0].replace("_", "-"), super().format_help())

    return Parser(allow_abbrev=False, **options)


def _readable(message: str) -> str:
    r"""A parser's message on one line in our words.

    >>> _readable('Parser key "config.k":\n  Expected a <class \'int\'>. Got value: x')
    'config.k: expected int, found x'
    """
    text = " ".join(message.split()).removeprefix("error: ")
    text = re.sub(r'Parser key "([\w.]+)":', r"\1:", text)
    text = re.sub(r"^config: Unable to load config '(.+?)' - (?=config\.)", r"\1: ", text)
    text = re.sub(r"^Group '([\w.]+)' does not accept option '(\S+)'", r"\1: unknown setting '\2'", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    return re.sub(r"Expected an? (.+?)\. Got value: ", r"expected \1, found ", text)


def _summary(stage: Stage) -> str:
    return (inspect.getdoc(stage) or stage.__name__).split("\n\n")[0]


def normalise_flags(argv: Sequence[str]) -> list[str]:
    """Write dashes inside flag names as the underscores of the parameters: `--num-shards=4` -> `--num_shards=4`.

    >>> normalise_flags(["--config.batch-size=4", "--k", "-3", "--", "--a-b"])
    ['--config.batch_size=4', '--k', '-3', '--', '--a-b']
    """
    flags: list[str] = []
    for place, word in enumerate(argv):
        if word == "--":
            return [*flags, *argv[place:]]
        if re.match(r"--[a-zA-Z]", word):
            name, equals, value = word.partition("=")
            word = "--" + name[2:].replace("-", "_") + equals + value
        flags.append(word)
    return flags
