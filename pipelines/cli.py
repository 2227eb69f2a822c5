"""The `ralm` command: stages and the commands of `pipelines/commands.py`. Each one imports what it needs itself."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from pipelines import commands

STAGES: Final = {
    "download": "turn a corpus, questions or a model into an artifact",
    "embed": "encode one shard of the passages",
    "index": "build the search index of all shards",
    "train": "train reader and retriever together",
    "evaluate": "answer questions and score answers and retrieval",
    "report": "merge evaluations into one page",
    "compare": "tell what changed between two dumps",
    "gate": "decide whether a new index may take over",
    "register": "register a pair of model and index in MLflow",
}
USAGE: Final = """usage: ralm COMMAND [--help] [arguments]

Retrieval-augmented language models: from a corpus to a trained, evaluated and registered model.

start here:
  quickstart       run the whole pipeline on a real Wikipedia slice, or index your own documents
  ask              answer a question, with the passages the answer was read from
  search           find the passages for a question
  serve            answer questions over HTTP

the whole pipeline:
  plan             say before a run what memory, time, storage and network it needs
  pipeline run     run it on this machine
  pipeline compile write the compiled graphs
  pipeline lint    check compiled graphs before a server gets them

on a Kubeflow cluster:
  pipeline submit  upload a pipeline and run it
  pipeline schedule
                   upload a pipeline and run it again and again

on other schedulers:
  task NAME        run one task of a pipeline

registered models:
  registry list    list the versions, and why each is what it is
  registry rollback
                   make an earlier version the champion again
  registry promote make a version the champion whatever was measured

its stages:
{stages}

official Atlas files:
  atlas import     turn the shards of an index into passages and embeddings
  atlas export     write a model, an index or predictions as Atlas reads them

what is kept:
  store list       list the finished artifacts
  store gc         remove artifacts that no run refers to

Every command has --help. Logs go to stderr; with --json a command prints one JSON object on stdout.
Everything is kept in $RALM_HOME (default ~/.ralm). Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0 done, 2 bad input, 130 interrupted, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        stages = "\n".join(f"  {name:<16} {purpose}" for name, purpose in STAGES.items())
        print(USAGE.format(stages=stages), end="")
        return 0
    name, rest = words[0], words[1:]
    if name in STAGES:
        return _run_stage(name, rest)
    if name == "task":
        from pipelines.task import run

        return run(rest)
    from ralm.cli import exit_code

    with exit_code() as outcome:
        parser = commands.build_parser()
        arguments = parser.parse_args(words)
        _set_up_logging(arguments.verbose)
        result = arguments.run(arguments)
        _print(result, arguments.show, as_json=arguments.json)
    return outcome.code


def _run_stage(name: str, argv: Sequence[str]) -> int:
    from ralm.cli import EXIT_BAD_INPUT, run_stage

    try:
        stage = getattr(importlib.import_module(f"components.{name}.stage"), name)
    except ModuleNotFoundError as error:
        print(f"ralm: error: {name} needs the package {error.name}; install ralm-pipelines[cpu]", file=sys.stderr)
        return EXIT_BAD_INPUT
    return run_stage(stage, argv, prog=f"ralm {name}")


def _set_up_logging(verbose: bool) -> None:
    from ralm.log import set_up_logging

    set_up_logging("DEBUG" if verbose else None)
    logging.captureWarnings(True)


def _print(result: dict[str, Any], show: Callable[[dict[str, Any]], str], *, as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False) if as_json else show(result))


if __name__ == "__main__":
    sys.exit(main())
