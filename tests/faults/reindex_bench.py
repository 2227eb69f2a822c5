"""The place where re-indexes are disturbed: a champion, a changed corpus, and what an undisturbed re-index makes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.conftest import toy_questions, write_tiny_model
from tests.faults.home_state import State, look
from tests.faults.pipeline_process import PipelineProcess, Span

EVALUATE: Final = {"num_passages": 2, "recall_at": [1, 5]}
TRAIN: Final = {"num_steps": 2, "batch_size": 2, "num_passages": 2, "mode": "joint"}
TITLES: Final = ("Granite", "Willow", "Otter", "Copper", "Falcon", "Harbour", "Violin")
COLOURS: Final = ("amber", "silver", "crimson", "iron", "wooden")


@dataclass
class Bench:
    """A folder for inputs, a RALM_HOME, and its copy from before the re-index."""

    folder: Path
    first: State = field(init=False)
    """Before the re-index."""
    expected: State = field(init=False)
    """After an undisturbed one."""
    spans: list[Span] = field(init=False)
    """Its tasks."""
    elapsed_s: float = field(init=False)
    run: PipelineProcess | None = None
    """The last one that was started."""

    @property
    def home(self) -> Path:
        """The RALM_HOME of all rounds: what the registry holds are absolute places."""
        return self.folder / "home"

    @property
    def template(self) -> Path:
        """The home as it was before the re-index."""
        return self.folder / "template"

    def restore(self) -> None:
        """Make the home what it was before the re-index."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.template, self.home)

    def start(self, words: Sequence[str], around: Sequence[str] = ()) -> PipelineProcess:
        """Start `ralm pipeline run` with these words."""
        self.run = PipelineProcess(words, self.home, around)
        return self.run

    def reindex(self, *, source: str = "", around: Sequence[str] = ()) -> PipelineProcess:
        """Start a re-index, from the changed corpus if nothing else is said."""
        values = {
            "source": source or str(self.folder / "changed.csv"),
            "questions": str(self.folder / "questions"),
            "num_shards": "2",
            "settings": json.dumps({"evaluate": EVALUATE}),
        }
        words = [word for name, value in values.items() for word in ("--param", f"{name}={value}")]
        return self.start(["--pipeline", "reindex", *words], around)


def prepare(bench: Bench) -> None:
    """Register the champion, and see what an undisturbed re-index makes of it."""
    write_inputs(bench.folder)
    places = {"passages": "corpus.csv", "questions": "questions", "model": "model"}
    words = [word for name, file in places.items() for word in (f"--{name}", str(bench.folder / file))]
    settings = {"train": TRAIN, "evaluate": EVALUATE, "report": {"resamples": 100}}
    made = bench.start([*words, "--num-shards", "2", "--settings", json.dumps(settings)])
    if made.wait() != 0:
        raise SystemExit(f"the champion could not be made:\n{made.log.text}")
    shutil.copytree(bench.home, bench.template)
    bench.first = look(bench.home)
    whole = bench.reindex()
    if whole.wait() != 0:
        raise SystemExit(f"the undisturbed re-index failed:\n{whole.log.text}")
    bench.elapsed_s, bench.spans, bench.expected = whole.elapsed_s(), whole.log.spans(), look(bench.home)
    for state in (bench.first, bench.expected):
        if state.problems or state.unfinished or state.open_runs:
            raise SystemExit(f"something is wrong before anything was disturbed: {state}")
    if (bench.first.champion, bench.expected.champion) != ("1", "2") or bench.first.answers == bench.expected.answers:
        raise SystemExit("the re-index changes nothing, so that the rounds would show nothing")


def write_inputs(folder: Path) -> None:
    """A corpus, the same with three of seven articles changed, questions and a tiny model."""
    for name, shift in (("corpus.csv", 0), ("changed.csv", 1)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["title", "text"])
            for page, title in enumerate(TITLES):
                colour = COLOURS[(page + (shift if page % 3 == 0 else 0)) % len(COLOURS)]
                writer.writerow([title, f"The colour of {title} is mostly {colour} in the northern valleys."])
    (folder / "questions").mkdir()
    for split in ("train", "dev", "test"):
        lines = [json.dumps(row) for row in toy_questions(split)]
        (folder / "questions" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_tiny_model(folder / "model")
