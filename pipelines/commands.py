"""The commands of `ralm` that are no stages: their flags, what they do, and how their results read."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from pipelines import capacity, quickstart, runs
from pipelines.parser import Parser, add_command, add_runner_flag
from pipelines.pipeline_commands import add_pipeline_commands
from pipelines.registry_commands import add_registry
from pipelines.serve import add_serve
from ralm.capacity.run import Cluster
from ralm.capacity.work import DEVICES
from ralm.errors import ConfigError


def build_parser() -> Parser:
    """The parser of all commands that are no stages."""
    parser = Parser(prog="ralm", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_search(commands)
    _add_ask(commands)
    add_serve(commands)
    _add_quickstart(commands)
    _add_plan(commands)
    pipeline = commands.add_parser("pipeline", help="compile, run or submit a whole pipeline", allow_abbrev=False)
    add_pipeline_commands(pipeline)
    add_registry(commands)
    store = commands.add_parser("store", help="list or clean up what is kept", allow_abbrev=False)
    _add_store(store.add_subparsers(metavar="list|gc", required=True, parser_class=Parser))
    atlas = commands.add_parser("atlas", help="official Atlas files to artifacts and back", allow_abbrev=False)
    _add_atlas(atlas.add_subparsers(metavar="import|export", required=True, parser_class=Parser))
    return parser


def _add_search(commands: Any) -> None:
    text = "Find the passages for a question."
    parser = add_command(commands, "search", run_search, show_passages, text)
    for name in ("passages", "index", "model"):
        parser.add_argument(f"--{name}", required=True, metavar="DIR", help=f"{name} artifact (folder or URL)")
    parser.add_argument("--question", required=True, metavar="Q", help="the question")
    parser.add_argument("--k", type=int, default=10, help="number of passages")


def run_search(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm search`."""
    from ralm.answer import Searcher

    searcher = Searcher(model=arguments.model, index=arguments.index, passages=arguments.passages)
    found = searcher.search([arguments.question], arguments.k)[0]
    return {"question": arguments.question, "passages": [hit.to_json() for hit in found]}


def _add_ask(commands: Any) -> None:
    text = (
        "Answer a question with a trained model, and show the passages the answer was read from. Without --model and "
        "--index the registry's champion of the recipe is asked, or else the model of the last run."
    )
    parser = add_command(commands, "ask", run_ask, show_answer, text)
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    parser.add_argument("--model", default="", metavar="DIR", help="model artifact; goes with --index and --passages")
    parser.add_argument("--index", default="", metavar="DIR", help="index artifact")
    parser.add_argument("--passages", default="", metavar="DIR", help="passages artifact")
    parser.add_argument("--recipe", default="", help="whose champion to ask; by default the last run's")
    parser.add_argument("--k", type=int, default=0, help="passages to read; 0: as many as the model was trained with")


def run_ask(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm ask`."""
    pair = runs.resolve_pair(
        model=arguments.model, index=arguments.index, passages=arguments.passages, recipe=arguments.recipe
    )
    if arguments.k < 0:
        raise ConfigError(f"k: expected 0 or more, found {arguments.k}")
    from ralm.answer import Answerer

    answerer = Answerer(model=pair.model, index=pair.index, passages=pair.passages)
    answer = answerer.answer([arguments.question], k=arguments.k or pair.num_passages)[0]
    return {**answer.to_json(), "source": pair.source}


def show_answer(result: dict[str, Any]) -> str:
    """An answer for people."""
    return f"{result['answer']}\n\nread from ({result['source']}):\n{show_passages(result)}"


def show_passages(result: dict[str, Any]) -> str:
    """Passages for people: score, title and section, and the text in full."""
    lines = []
    for rank, passage in enumerate(result["passages"], start=1):
        name = ": ".join(part for part in (passage["title"], passage["section"]) if part)
        lines.append(f"{rank:>3}. {name}  (score {passage['score']:.3f})")
        lines.append(textwrap.fill(passage["text"], width=100, initial_indent="     ", subsequent_indent="     "))
    return "\n".join(lines) or "no passages"


def _add_quickstart(commands: Any) -> None:
    text = (
        "Run the whole pipeline on 106 real Wikipedia articles with small models: download, index, train on 64 "
        "questions, evaluate, report, register. With --corpus, index your own documents with the model trained so."
    )
    parser = add_command(commands, "quickstart", run_quickstart, quickstart.show_quickstart, text)
    parser.add_argument(
        "--corpus", default="", metavar="PLACE", help="your csv or jsonl file, or folder of .txt or .md"
    )
    add_runner_flag(parser)


def run_quickstart(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm quickstart`."""
    if arguments.corpus and arguments.runner != "subprocess":
        raise ConfigError("runner: --corpus runs no pipeline, but the stages in this process; leave --runner out")
    return quickstart.index_own(arguments.corpus) if arguments.corpus else quickstart.run(arguments.runner)


def _add_plan(commands: Any) -> None:
    text = (
        "Say before a run what it needs of given machines: memory of each device, hours, storage and network. A run "
        "that cannot be is refused with the reason. Nothing is fetched or computed."
    )
    parser = add_command(commands, "plan", run_plan, capacity.show_plan, text)
    parser.add_argument("--recipe", default="quickstart", help="named complete run")
    parser.add_argument("--passages", type=int, required=True, metavar="N", help="passages of the corpus")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs of all nodes together")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines they are in")
    parser.add_argument("--memory-gib", type=float, required=True, metavar="G", help="memory of one device, in GiB")
    parser.add_argument("--device-rate", choices=DEVICES, default="a100", help="whose speed to count with")
    parser.add_argument(
        "--passages-per-s", type=float, default=0.0, metavar="R", help="measured speed of embedding, of one device"
    )
    parser.add_argument(
        "--efficiency", type=float, default=0.0, metavar="E", help="part of its peak a device reaches in training"
    )
    parser.add_argument("--settings", default="{}", metavar="JSON", help=runs.INPUTS["settings"].help)
    parser.add_argument("--model", default="", metavar="DIR", help="model artifact to take sizes and lengths from")


def run_plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm plan`."""
    names = [field.name for field in dataclasses.fields(Cluster)]
    return capacity.make_plan(
        arguments.recipe,
        Cluster(**{name: getattr(arguments, name) for name in names}),
        passages=arguments.passages,
        settings=arguments.settings,
        model=arguments.model,
    )


def _add_store(commands: Any) -> None:
    add_command(commands, "list", run_list, show_store, "List the finished artifacts, oldest first.")
    text = (
        "Remove old artifacts that neither the last run nor a registered version was made from. Embeddings go in any "
        "case: an index holds the same vectors."
    )
    parser = add_command(commands, "gc", run_gc, show_store, text)
    parser.add_argument("--keep-days", type=float, default=14.0, help="younger artifacts stay")
    parser.add_argument(
        "--keep-versions",
        type=int,
        default=0,
        metavar="N",
        help="retire all but the newest N versions of each recipe, the champion and the one before it; 0: none",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")


def run_list(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm store list`."""
    from ralm.artifacts.collect import list_store

    return {"artifacts": [dataclasses.asdict(artifact) for artifact in list_store()]}


def run_gc(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm store gc`."""
    from ralm.artifacts.collect import collect_garbage
    from ralm.tracking import has_registry

    surplus = []
    if arguments.keep_versions:
        from ralm.retention import retire, surplus_versions

        surplus = surplus_versions(arguments.keep_versions) if has_registry() else []
    without = {(f"ralm-{recipe}", version.version) for recipe, version in surplus}
    places = runs.places_in_use(without)
    for recipe, version in surplus if not arguments.dry_run else ():
        retire(recipe, version)  # first: a version without artifacts must not look as if it had them
    removed = collect_garbage(roots=places, keep_days=arguments.keep_days, is_dry_run=arguments.dry_run)
    return {
        "artifacts": [dataclasses.asdict(artifact) for artifact in removed],
        "dry_run": arguments.dry_run,
        "retired": [f"ralm-{recipe} {version.version}" for recipe, version in surplus],
    }


def show_store(result: dict[str, Any]) -> str:
    """Artifacts for people."""
    lines = [
        f"{item['kind']:<12} {item['bytes'] / 2**20:>10.1f} MiB {item['age_days']:>8.1f} days  {item['uri']}"
        for item in result["artifacts"]
    ]
    verb = "" if "dry_run" not in result else " would be removed" if result["dry_run"] else " removed"
    retired = [f"{name}{verb.replace('removed', 'retired')}" for name in result.get("retired", [])]
    return "\n".join([*lines, *retired, f"{len(lines)} artifacts{verb}"])


def _add_atlas(commands: Any) -> None:
    text = (
        "Turn the shards of an Atlas index (passages.N.pt, embeddings.N.pt) into passages and embeddings, for "
        "`ralm index`. Some passages are encoded again, so that vectors of another model are refused."
    )
    parser = add_command(commands, "import", run_atlas_import, show_atlas_import, text)
    parser.add_argument("--source", required=True, metavar="S", help="folder of shards, or atlas:indices/...")
    parser.add_argument("--model", required=True, metavar="DIR", help="model artifact whose vectors these are")
    parser.add_argument("--passages", required=True, metavar="DIR", help="folder that receives the passages")
    parser.add_argument("--embeddings", required=True, metavar="DIR", help="folder that receives the vectors")
    parser.add_argument("--num-checked", type=int, default=64, help="passages to encode again; 0: believe the vectors")
    parser.add_argument("--min-cosine", type=float, default=0.99, help="what the median of their cosines has to reach")

    text = (
        "Write an artifact as Atlas reads it: --model as model.pth.tar, --index with --passages as shards of an index, "
        "--predictions as results.jsonl (with --passages it holds their texts)."
    )
    parser = add_command(commands, "export", run_atlas_export, lambda result: str(result["path"]), text)
    for name in ("model", "index", "predictions", "passages"):
        parser.add_argument(f"--{name}", default="", metavar="DIR", help=f"{name} artifact")
    parser.add_argument("--output", required=True, metavar="PLACE", help="folder; for predictions a file")
    parser.add_argument("--num-shards", type=int, default=128, help="shards of an index")


def run_atlas_import(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm atlas import`."""
    from ralm.atlas.index_import import import_index

    names = ("source", "model", "passages", "embeddings", "num_checked", "min_cosine")
    made = import_index(**{name: getattr(arguments, name) for name in names})
    return {manifest.kind: {**manifest.to_json(), "reused": manifest.reused} for manifest in made}


def show_atlas_import(result: dict[str, Any]) -> str:
    """An imported index for people."""
    return f"{result['embeddings']['counts']['passages']:,} passages and their vectors"


def run_atlas_export(arguments: argparse.Namespace) -> dict[str, Any]:
    """`ralm atlas export`."""
    given = [name for name in ("model", "index", "predictions") if getattr(arguments, name)]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"atlas export: expected exactly one of --model, --index and --predictions, found {found}")
    if given == ["index"] and not arguments.passages:
        raise ConfigError("atlas export: --index goes with the --passages it was made from")
    return {"path": str(_EXPORTS[given[0]](arguments))}


def _export_model(arguments: argparse.Namespace) -> Path:
    from ralm.atlas.model import export_model

    return export_model(arguments.model, arguments.output)


def _export_index(arguments: argparse.Namespace) -> Path:
    from ralm.atlas.index_export import export_index

    return export_index(
        index=arguments.index,
        passages=arguments.passages,
        output=arguments.output,
        num_shards=arguments.num_shards,
    )


def _export_predictions(arguments: argparse.Namespace) -> Path:
    from ralm.atlas.predictions import export_predictions

    return export_predictions(predictions=arguments.predictions, passages=arguments.passages, output=arguments.output)


_EXPORTS = {"model": _export_model, "index": _export_index, "predictions": _export_predictions}
