"""What a task of a pipeline costs beside its work, run on this machine by the subprocess runner, tracking off.

A graph of tasks in a row is compiled, each an empty stage that does all that stages do: it reads its settings, takes
the artifact of the task before, makes one of its own in the store and hands over a reference. The whole run is timed in
a process of its own, from the start of Python to its end, and divided by the number of tasks; nothing is subtracted.
Two lengths tell what a run costs at all and what each task adds. The same row of tasks is run with an image that
carries torch, whose import the first of them waits for.

Which stages import torch without need: those whose image has none are run as commands on made artifacts, and after each
its process is asked for its modules; so are the tasks of the runner above, which are forks of a process with imports.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.suite import Bench, Measured
from components.images import BASE_IMAGE, CPU_IMAGE
from ralm.artifacts.files import write_json
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.artifacts.store import Contents, produce

ALONE = """
import json, sys
from pipelines.task import run
code = run(sys.argv[1:])
sys.exit(code or 3 * ("torch" in sys.modules))
"""
WITH_TORCH = 3
"""Exit code of the program above, in the place of 0, where the process has torch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmptyConfig:
    """Settings of a stage without work."""

    number: int = 0
    """Of the task; makes its artifact another than the others'."""


def empty(*, before: str = "", made: str, config: EmptyConfig = EmptyConfig()) -> Manifest:  # noqa: B008 - frozen
    """A stage without work; its artifact tells whether its process had torch.

    Args:
        before: artifact of the task before.
        made: output folder.
        config: settings.
    """
    inputs = {"before": open_artifact(before, "empty").fingerprint} if before else {}

    def build(folder: Path) -> Contents:
        write_json(folder / "empty.json", {"number": config.number})
        return Contents(counts={"torch": int("torch" in sys.modules)})

    return produce(made, kind="empty", stage="empty", stage_version=1, inputs=inputs, config=config, build=build)


def measure(bench: Bench) -> Measured:
    """O1: seconds for a task without work, and stages that import torch without need."""
    folder = bench.work / "overhead"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    few, many = (1, 3) if bench.small else (2, 14)  # a re-index has 14 tasks, a training without rounds 11
    kinds = {"few": (few, BASE_IMAGE), "many": (many, BASE_IMAGE), "with_torch": (many, CPU_IMAGE)}
    if bench.small:
        del kinds["with_torch"]
    for name, (tasks, image) in kinds.items():
        write_graph(folder / f"{name}.yaml", tasks, image)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    had_torch = 0
    for _ in range(1 if bench.small else bench.repeats):
        for name, spent in times.items():
            seconds, events = run_graph(folder, folder / f"{name}.yaml")
            spent.append(seconds)
            assert len(events) == kinds[name][0]
            had_torch += sum(event["counts"]["torch"] for event in events if name != "with_torch")
    wall = {name: median(spent) for name, spent in times.items()}
    alone = torch_in_commands(folder)
    per_task = (wall["many"] - wall["few"]) / (many - few)
    figures = {
        "overhead_s": wall["many"] / many,
        "torch_imports": float(sum(alone.values()) + had_torch),
        "per_task_s": per_task,
        "per_run_s": wall["few"] - few * per_task,
    }
    figures |= {f"overhead_{name}_s": seconds / kinds[name][0] for name, seconds in wall.items() if name != "many"}
    table = ["| graph | tasks | s, least to most | s per task |", "|---|---|---|---|"]
    for name, spent in times.items():
        tasks, image = kinds[name]
        label = "tasks with torch" if image == CPU_IMAGE else "tasks without torch"
        table.append(f"| {label} | {tasks} | {min(spent):.2f} to {max(spent):.2f} | {wall[name] / tasks:.3f} |")
    table += ["", "| stage without need of torch | imports it |", "|---|---|"]
    table += [f"| {name} | {'yes' if found else 'no'} |" for name, found in alone.items()]
    return Measured(figures, table)


def write_graph(path: Path, tasks: int, image: str) -> None:
    """Compile a row of empty tasks."""
    from kfp import compiler, dsl  # here: the tasks import this module, too

    @dsl.component(base_image=image, install_kfp_package=False)
    def empty_op(
        made: dsl.Output[dsl.Dataset],
        before: dsl.Input[dsl.Dataset] = None,
        config: str = "{}",
        parent_run_id: str = "",
    ) -> None:
        from benchmarks.rows.overhead import empty
        from ralm.cli import run_task

        place = before.path if before else ""
        run_task(empty, before=place, made=made.path, config=config, parent_run_id=parent_run_id)

    @dsl.pipeline(name="empty-tasks")
    def graph() -> None:
        last: dict[str, Any] = {}
        for number in range(tasks):
            task = empty_op(config=json.dumps({"number": number}), **last).set_caching_options(False)
            last = {"before": task.outputs["made"]}

    compiler.Compiler().compile(graph, str(path))


def run_graph(folder: Path, graph: Path) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a run in a process of its own with an empty store, and the events of its tasks."""
    home, events = folder / "home", folder / "events.json"
    shutil.rmtree(home, ignore_errors=True)
    started_at = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.rows.overhead", str(graph), str(events)]
    run(command, home)
    return time.perf_counter() - started_at, json.loads(events.read_text(encoding="utf-8"))


def torch_in_commands(folder: Path) -> dict[str, bool]:
    """Run each stage and step whose image has no torch as a command, and tell whether its process had torch."""
    home, found = folder / "home-of-commands", {}
    write_corpus(folder)
    for name, words in commands(folder).items():
        if name == "select":  # from here on they need a model, an index and predictions
            run([sys.executable, "-m", "benchmarks.rows.overhead", "--artifacts", str(folder)], home)
        found[name] = run([sys.executable, "-c", ALONE, *words], home, allowed=(0, WITH_TORCH)) == WITH_TORCH
    return found


def write_corpus(folder: Path) -> None:
    """A few texts, and a question about them."""
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(8):
            row = {"id": number, "title": f"Page {number}", "section": "", "text": "abest corow duning elan " * 5}
            file.write(json.dumps(row) + "\n")
    asked = {"question_id": "one", "question": "what is abest", "answers": ["corow"], "positive_titles": ["Page 1"]}
    (folder / "questions.jsonl").write_text(json.dumps(asked) + "\n", encoding="utf-8")


def commands(folder: Path) -> dict[str, list[str]]:
    """Words of `ralm task` for each stage and step whose image has no torch, in an order that works."""
    names = ("passages", "model", "index", "predictions", "corpus.jsonl", "questions.jsonl")
    passages, model, index, predictions, corpus, questions = (str(folder / name) for name in names)
    pair = ["--model", model, "--index", index, "--passages", passages]
    selected = [f"--selected-{name}={folder / f'selected-{name}'}" for name in ("model", "index", "passages")]
    recipe, run_id = ["--recipe", "quickstart"], ["--run-id", "one"]
    twice = ["--before", predictions, "--after", predictions]
    return {
        "start": ["start", *recipe, *run_id],
        "plan": ["plan", *recipe],
        "download passages": ["download", "--source", corpus, "--passages", passages],
        "download questions": ["download", "--source", questions, "--questions", str(folder / "questions")],
        "select": ["select", *recipe, *pair, *selected],
        "watch": ["watch", *recipe, "--source", corpus, "--passages", passages, "--model", model],
        "compare": ["compare", "--previous", passages, "--passages", passages, "--changes", str(folder / "changes")],
        "report": ["report", *twice, "--passages", passages, "--report", str(folder / "report")],
        "gate": ["gate", "--champion", predictions, "--challenger", predictions, "--decision", str(folder / "gate")],
        "register": ["register", *pair, "--predictions", predictions, "--registration", str(folder / "registration")],
        "finish": ["finish", "--pipeline", "benchmark", *run_id, "--state", "succeeded"],
    }


def make_artifacts(folder: Path) -> None:
    """Model, index and predictions of the corpus in a folder."""
    from benchmarks.inputs import made_model
    from components.embed.stage import embed
    from components.evaluate.config import EvaluateConfig
    from components.evaluate.stage import evaluate
    from components.index.stage import index

    passages, model, found = (str(folder / name) for name in ("passages", "model", "index"))
    made_model(Bench(folder, small=True), folder / "model")
    embed(passages=passages, model=model, embeddings=str(folder / "vectors"))
    index(embeddings=str(folder / "vectors"), index=found)
    evaluate(
        passages=passages,
        index=found,
        model=model,
        questions=str(folder / "questions"),
        predictions=str(folder / "predictions"),
        config=EvaluateConfig(num_passages=2, recall_at=(1, 2)),
    )


def run(command: list[str], home: Path, allowed: tuple[int, ...] = (0,), **variables: str) -> int:
    """Exit code of a command with a store of its own and without tracking.

    Raises:
        RuntimeError: it is none of the allowed ones.
    """
    environment = {**os.environ, "RALM_HOME": str(home.absolute()), "RALM_TRACKING": "off", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise RuntimeError(f"{' '.join(command[-8:])} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.returncode


def main(argv: list[str] | None = None) -> None:
    """Run a compiled graph and write the events of its tasks; or make the artifacts for commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--artifacts", action="store_true")
    given = parser.parse_args(argv)
    if given.artifacts:
        make_artifacts(given.places[0])
        return
    from pipelines.local import run_pipeline

    graph, events = given.places
    done = run_pipeline({}, file=graph)
    events.write_text(json.dumps(done.events), encoding="utf-8")


if __name__ == "__main__":
    main()
