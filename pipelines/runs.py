"""Runs of the pipeline from the command line: their inputs, their summary, and which run was the last."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.compile import Runner
from ralm.artifacts.files import Location, exists, join, ralm_home, read_json, read_settings, write_json
from ralm.artifacts.manifest import read_artifact
from ralm.errors import ArtifactError, ConfigError

ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Input:
    """One of the pipeline's inputs as a flag."""

    type: type[str] | type[int] | type[float]
    help: str


INPUTS: Final[dict[str, Input]] = {
    "passages": Input(str, "source of the corpus: dump, table, folder, URL, asset"),
    "questions": Input(str, "folder of train.jsonl, dev.jsonl and test.jsonl"),
    "model": Input(str, "source of a bundle of retriever and reader"),
    "retriever": Input(str, "source of the retriever, such as hf://facebook/contriever"),
    "reader": Input(str, "source of the reader, such as hf://google/t5-base-lm-adapt"),
    "num_shards": Input(int, "tasks that share the encoding of the passages"),
    "num_processes": Input(int, "processes of the training on each node, one for each GPU"),
    "nodes": Input(int, "machines that the training takes"),
    "num_passages": Input(int, "passages per question, in training and evaluation"),
    "num_steps": Input(int, "training steps"),
    "learning_rate": Input(float, "of the reader"),
    "seed": Input(int, "of training"),
    "settings": Input(str, 'further settings, JSON by stage, such as \'{"train": {"batch_size": 2}}\''),
}


@dataclass(frozen=True, kw_only=True)
class LastRun:
    """What `$RALM_HOME/runs/last.json` says."""

    recipe: str
    model: Location
    index: Location
    passages: Location
    report: Location = ""
    num_passages: int = 0
    """Passages the model was evaluated with; 0: as its reader says."""
    is_registered: bool = True
    """False for an own corpus indexed with another run's model."""
    finished_at: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a pipeline run did."""

    recipe: str
    passages: int
    before: dict[str, float]
    """Metrics before training."""
    after: dict[str, float]
    model: Location
    index: Location
    passages_uri: Location
    report: Location
    registration: dict[str, Any]
    mlflow: str
    """Where its MLflow runs are; empty where tracking is off."""
    reused: list[str]
    """Stages whose artifact had been made before, each once."""
    elapsed_s: float


@dataclass(frozen=True)
class ResolvedPair:
    """A model, its index and the passages, and where they were named."""

    model: Location
    index: Location
    passages: Location
    source: str
    num_passages: int = 0


def read_inputs(place: Location) -> dict[str, Any]:
    """Pipeline inputs from a YAML or JSON file; `settings` may be nested there.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    inputs: dict[str, Any] = {}
    for name, value in read_settings(place).items():
        if name not in INPUTS:
            raise ConfigError(f"{place}: unknown setting {name!r}, expected one of {', '.join(INPUTS)}")
        if name == "settings" and isinstance(value, Mapping):
            inputs[name] = json.dumps(value)
            continue
        kind = INPUTS[name].type
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits:
            raise ConfigError(f"{place}: {name}: expected {kind.__name__}, found {value!r}")
        inputs[name] = kind(value)
    return inputs


def run_recipe(recipe: str, inputs: Mapping[str, Any], *, runner: Runner = "subprocess") -> Summary:
    """Run the pipeline here, and note it as the last run.

    Raises:
        ConfigError: unknown recipe or setting; known before anything runs.
        PipelineError: a task failed.
    """
    from components.plan.stage import Changes, plan
    from pipelines.local import run_pipeline
    from pipelines.recipes import recipes_json
    from ralm import tracking

    arguments = {**inputs, "questions": find_questions(recipe, str(inputs.get("questions", "")))}
    planned = plan(recipes=recipes_json(), recipe=recipe, changes=Changes(**arguments))
    check_configs(planned._asdict())
    finished = run_pipeline({"recipe": recipe, **arguments}, runner=runner)
    registration = read_json(join(finished.last("registration"), "registration.json"))
    before, after = _metrics(finished.all("predictions"), registration["model"])
    summary = Summary(
        recipe=recipe,
        passages=_count(finished.events, "passages", "passages"),
        before=before,
        after=after,
        model=registration["model"],
        index=registration["index"],
        passages_uri=registration["passages"],
        report=join(finished.last("report"), "report.html"),
        registration=registration,
        mlflow=tracking.tracking_uri() if tracking.is_enabled() else "",
        reused=list(
            dict.fromkeys(f"{event['stage']} ({event['kind']})" for event in finished.events if event["reused"])
        ),
        elapsed_s=round(finished.elapsed_s, 1),
    )
    num_passages = json.loads(planned.evaluate)["num_passages"]
    record_last(
        LastRun(
            recipe=recipe,
            model=summary.model,
            index=summary.index,
            passages=summary.passages_uri,
            report=summary.report,
            num_passages=num_passages if isinstance(num_passages, int) else 0,
        )
    )
    return summary


def _metrics(predictions: list[Location], trained: Location) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics before and after training; the evaluations may end in any order, so their model tells which is which."""
    fingerprint = read_artifact(trained).fingerprint
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for place in predictions:
        found = read_artifact(place)
        metrics = read_json(found.file("metrics.json"))
        if found.manifest.inputs["model"] == fingerprint:
            after = metrics
        else:
            before = metrics
    return before, after


def check_configs(planned: Mapping[str, Any]) -> None:
    """Every stage's config as its task will read it, so that a wrong setting is told before any work."""
    import importlib

    from components.plan.stage import STAGES
    from ralm.cli import parse_config

    for stage in STAGES:
        module = importlib.import_module(f"components.{stage}.config")
        parse_config(getattr(module, f"{stage.title()}Config"), planned[stage])


def find_questions(recipe: str, given: str) -> str:
    """The questions' place; those of the recipe are files of this checkout, wherever it is called from."""
    from pipelines.recipes import RECIPES

    if given or recipe not in RECIPES:
        return given
    named = RECIPES[recipe]().sources.questions
    if not named.startswith("examples/") or (ROOT / named).is_dir():
        return str(ROOT / named) if named.startswith("examples/") else ""
    raise ConfigError(f"questions: {ROOT / named} is missing; give --questions")


def _count(events: list[dict[str, Any]], kind: str, name: str) -> int:
    return next((int(event["counts"].get(name, 0)) for event in events if event["kind"] == kind), 0)


FIGURES = (
    ("recall_title_at_10", "recall@10 (title)"),
    ("debiased_accuracy", "debiased accuracy"),
    ("accuracy", "accuracy"),
    ("exact_match", "exact match"),
    ("f1", "F1"),
)
"""What the summary shows of a run's metrics, as far as its task has them."""


def show_run(result: dict[str, Any]) -> str:
    """A pipeline run's summary for people."""
    before, after = result["before"], result["after"]
    registration = result["registration"]
    lines = [
        f"recipe             {result['recipe']}, {result['elapsed_s']:.0f} s",
        f"passages           {result['passages']:,}",
    ]
    for name, label in FIGURES:
        if name in after and name in before:
            lines.append(f"{label:<18} {before[name]:.3f} before training, {after[name]:.3f} after")
    version = f"{registration['name']} version {registration['version']} ({registration['alias']})"
    lines += [
        f"registered         {version if registration['version'] else registration['reason']}",
        f"report             {result['report']}",
        f"MLflow             {result['mlflow'] or 'off'}",
        f"reused             {', '.join(result['reused']) or 'nothing'}",
    ]
    return "\n".join(lines)


def record_last(run: LastRun) -> None:
    """Note a run as the last one."""
    finished_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(ralm_home() / "runs" / "last.json", dataclasses.asdict(run) | {"finished_at": finished_at})


def read_last() -> LastRun | None:
    """The last run that came to its end, or None.

    Raises:
        ArtifactError: the record is damaged.
    """
    place = str(ralm_home() / "runs" / "last.json")
    if not exists(place):
        return None
    try:
        return LastRun(**read_json(place))
    except TypeError as error:
        raise ArtifactError(f"{place}: damaged: {error}") from error


def places_in_use(without: Collection[tuple[str, str]] = ()) -> list[Location]:
    """What the last run and the registry's versions refer to: the store must keep it.

    Args:
        without: (name, version) of versions that do not count.
    """
    from ralm.tracking import has_registry

    last = read_last()
    places = [last.model, last.index, last.passages] if last else []
    if last is not None and last.report:
        places.append(last.report.removesuffix("/report.html"))
    if has_registry():
        from ralm.serving import registered_places

        places += registered_places(without)
    return sorted(set(places))


def resolve_pair(*, model: Location, index: Location, passages: Location, recipe: str) -> ResolvedPair:
    """Find what to ask: the places given, else the registry's champion, else the last run.

    Args:
        model: model artifact or empty.
        index: index artifact or empty.
        passages: passages artifact or empty.
        recipe: whose champion; empty: the last run's recipe.

    Raises:
        ConfigError: only some of the places are given, or there is nothing to ask.
    """
    places = {"--model": model, "--index": index, "--passages": passages}
    if any(places.values()):
        missing = [flag for flag, place in places.items() if not place]
        if missing:
            raise ConfigError(f"--model, --index and --passages go together; missing: {', '.join(missing)}")
        return ResolvedPair(model, index, passages, "given")
    last = read_last()
    wanted = recipe or (last.recipe if last else "quickstart")
    is_last = last is not None and last.recipe == wanted
    if last is None or not is_last or last.is_registered:
        champion = _champion(wanted)
        if champion is not None:
            num_passages = last.num_passages if last is not None and is_last else 0
            return dataclasses.replace(champion, num_passages=num_passages)
    if last is not None and is_last:
        return ResolvedPair(last.model, last.index, last.passages, f"last run, {wanted}", last.num_passages)
    raise ConfigError(f"no trained model of recipe {wanted!r}; run `ralm quickstart`, or give --model and --index")


def _champion(recipe: str) -> ResolvedPair | None:
    from ralm.tracking import has_registry

    if not has_registry():
        return None
    from ralm.serving import open_pair

    pair = open_pair(recipe)
    if pair is None:
        return None
    return ResolvedPair(pair.model, pair.index, pair.passages, f"models:/{pair.name}@champion")
