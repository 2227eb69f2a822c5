"""`ralm serve`: a pair of model and index as an HTTP service."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from pipelines import runs
from pipelines.parser import add_command
from ralm.errors import ConfigError

if TYPE_CHECKING:
    from ralm.service.pair import Target

CHAMPION_PREFIX = "models:/"


def add_serve(commands: Any) -> None:
    """Add `serve` to the commands of `ralm`."""
    text = (
        "Answer questions over HTTP: POST /invocations as MLflow's servers take it, GET /health, /ready and /version. "
        "What is served is found as by `ralm ask`. Requests that wait are answered together. Ends well on SIGTERM."
    )
    parser = add_command(commands, "serve", run_serve, show_served, text)
    parser.add_argument("--model", default="", metavar="DIR", help="model artifact; goes with --index and --passages")
    parser.add_argument("--index", default="", metavar="DIR", help="index artifact")
    parser.add_argument("--passages", default="", metavar="DIR", help="passages artifact")
    parser.add_argument("--recipe", default="", help="whose champion to serve; by default the last run's")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; there is no login: 0.0.0.0 is public"
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen at; 0: any that is free")
    k = "passages to read where a request does not say; 0: as many as the model was trained with"
    parser.add_argument("--k", type=int, default=0, help=k)
    parser.add_argument("--max-k", type=int, default=100, metavar="K", help="most passages that a request may ask for")
    parser.add_argument("--max-questions", type=int, default=64, metavar="N", help="most questions in a request")
    parser.add_argument("--max-batch", type=int, default=16, metavar="N", help="most questions answered together")
    parser.add_argument(
        "--max-waiting", type=int, default=256, metavar="N", help="most questions that wait; others get a 503"
    )
    parser.add_argument(
        "--follow-champion",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="look so often whether another version became champion, and change over to it; 0: never",
    )
    parser.add_argument(
        "--stop-within",
        type=float,
        default=25.0,
        metavar="SECONDS",
        help="how long requests are finished after SIGTERM or Ctrl-C",
    )
    traces = "traces of requests in MLflow: questions, passages, answers; auto: where MLFLOW_TRACKING_URI is set"
    parser.add_argument("--trace", choices=("auto", "on", "off"), default="auto", help=traces)


def run_serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm serve`.

    Raises:
        ConfigError: a setting out of range, nothing to serve, or an image without the libraries of models.
    """
    try:
        from ralm.service.protocol import Limits
        from ralm.service.run import ServiceConfig, serve
        from ralm.service.traces import are_wanted
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs the package {error.name}; install ralm-pipelines[cpu]") from error
    config = ServiceConfig(
        host=arguments.host,
        port=arguments.port,
        k=arguments.k,
        limits=Limits(max_k=arguments.max_k, max_questions=arguments.max_questions),
        max_batch=arguments.max_batch,
        max_waiting=arguments.max_waiting,
        follow_champion_s=arguments.follow_champion,
        stop_within_s=arguments.stop_within,
        traces=are_wanted(arguments.trace),
    )
    return dataclasses.asdict(serve(find_target(arguments), config))


def find_target(arguments: argparse.Namespace) -> Target:
    """What to serve, found as by `ralm ask`.

    Raises:
        ConfigError: there is nothing, or --follow-champion has nothing to follow.
        ArtifactError: the champion's artifacts are not what was registered.
    """
    from ralm.service.pair import Target, champion_target

    pair = runs.resolve_pair(
        model=arguments.model, index=arguments.index, passages=arguments.passages, recipe=arguments.recipe
    )
    if pair.source.startswith(CHAMPION_PREFIX):
        return champion_target(pair.source.removeprefix(f"{CHAMPION_PREFIX}ralm-").removesuffix("@champion"))
    if arguments.follow_champion:
        raise ConfigError(f"--follow-champion: expected a registered pair, found {pair.source}")
    return Target(
        model=pair.model, index=pair.index, passages=pair.passages, source=pair.source, recipe=arguments.recipe
    )


def show_served(result: dict[str, Any]) -> str:
    """What the service did, for people."""
    return f"questions answered: {result['questions']}, in {result['elapsed_s']:.0f} s"
