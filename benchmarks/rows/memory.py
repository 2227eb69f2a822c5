"""Peak memory and time of each stage at 1, 4 and 16 times a corpus, each stage in a process of its own.

Counted is memory that only swapping can free: anonymous and shared pages of the process and all it started, pages that
several of them hold counted once (`Pss_Anon` and `Pss_Shmem` of Linux), looked at every ten milliseconds. Pages of
mapped files (matrices, Parquet) are the system's to drop and are not counted. The peak takes in Python and the
libraries, 60 to 400 MB, and of the download that of one worker; so that these do not hide what grows, the slope is
given, too: bytes more for each passage more, from the smallest corpus to the largest.

Questions made of passages (`corpus:mlm`) are left out: they are made in blocks of 131,072 passages, so their memory is
constant only above these sizes.

What an index has to hold (bytes for a vector as its manifest tells them, and 8 for an id) is subtracted where a stage
makes or searches it. The corpus is made, the models are tiny: what grows with passages is what is looked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.inputs import made_model
from benchmarks.made_dump import write_made_dump, write_made_questions
from benchmarks.plots import curves_plot
from benchmarks.suite import Bench, Measured
from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.files import read_json
from ralm.artifacts.manifest import TIMINGS, read_artifact

TIMES = (1, 4, 16)
ARTICLES = 1800
"""Of the smallest dump: about 5,000 passages. A smaller one would not fill the buffers of a download."""
SHORT_ARTICLES, SHORT_WORDS = 450, 25
"""Of the smallest corpus that is encoded: as many passages, but short ones, since encoding takes most of the time."""
BLOCK = 1024
"""Passages that are encoded at a time, so that the smallest corpus has several blocks."""
LOOK_S, LOOK_FOR_CHILDREN_S = 0.02, 0.2
STAGES = {
    "download": "passages",
    "embed": "embeddings",
    "index flat": "flat",
    "index ivf_pq": "ivf_pq",
    "evaluate": "predictions",
    "train": "trained",
    "report": "report",
    "download again": "later-passages",
    "compare": "changes",
    "embed again": "later-embeddings",
    "index flat again": "later-flat",
    "index ivf_pq again": "later-ivf_pq",
}
"""In their order, with the folder that each makes; `again` is the re-index of a dump with 1 % changed articles."""
SMALL = ("download",)
SEARCHED = {"evaluate": "flat", "train": "flat"}
"""The index that a stage has in memory without making it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of a stage needed."""

    passages: int
    """Of the corpus."""
    peak: int
    """Bytes."""
    index: int
    """Bytes that the index of the stage has to hold; 0 where there is none."""
    seconds: float
    """Of making its artifact; without the start of Python and the imports."""


@dataclasses.dataclass(frozen=True)
class Growth:
    """Runs of one stage over growing corpora."""

    runs: Sequence[Run]

    @property
    def own(self) -> list[int]:
        """Peak bytes without the index."""
        return [run.peak - run.index for run in self.runs]

    @property
    def growth(self) -> float:
        """Of the largest corpus over the smallest."""
        return self.own[-1] / self.own[0]

    @property
    def bytes_per_passage(self) -> float:
        """The slope."""
        return (self.own[-1] - self.own[0]) / (self.runs[-1].passages - self.runs[0].passages)

    def line(self, stage: str) -> str:
        """Of the table."""
        cells = [
            stage,
            f"{self.runs[-1].passages:,}",
            *(f"{run.peak / 1e6:.1f}" for run in self.runs),
            f"{self.runs[-1].index / 1e6:.1f}",
        ]
        cells += [f"{self.growth:.3f}", f"{self.bytes_per_passage:.0f}", *(f"{run.seconds:.2f}" for run in self.runs)]
        return f"| {' | '.join(cells)} |"


def measure(bench: Bench) -> Measured:
    """M1: growth of the peak memory of each stage."""
    work = bench.work / "memory"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stages = SMALL if bench.small else tuple(STAGES)
    if not bench.small:
        made_model(Bench(work, small=True), work / "model")
        write_made_questions(work / "questions", SHORT_ARTICLES, number=32)
        download(source=str(work / "questions"), questions=str(work / "asked"))
    runs: dict[str, list[Run]] = {stage: [] for stage in stages}
    for times in TIMES[:2] if bench.small else TIMES:
        folder = work / f"{times}x"
        write_corpora(folder, times * (40 if bench.small else ARTICLES), 0 if bench.small else times * SHORT_ARTICLES)
        for stage in stages:
            runs[stage].append(run_stage(stage, folder))
        shutil.rmtree(folder)
    rows = {stage: Growth(found) for stage, found in runs.items()}
    write_plots(bench.work, rows)
    figures = {"growth": max(row.growth for row in rows.values())}
    for stage, row in rows.items():
        name = stage.replace(" ", "_")
        figures |= {f"growth_{name}": row.growth, f"bytes_{name}": row.bytes_per_passage}
    sizes = " | ".join(f"{times} times" for times in TIMES)
    table = [
        f"| stage | most passages | MB, {sizes} | its index, MB | growth without | bytes for a passage | s, {sizes} |",
        f"|---{'|---' * (2 * len(TIMES) + 4)}|",
    ]
    return Measured(figures, [*table, *(row.line(stage) for stage, row in rows.items())])


def write_corpora(folder: Path, articles: int, short: int) -> None:
    """Dumps for the stages that read them, and passages for those that encode them; each also as of a later date."""
    folder.mkdir()
    for later, changed_every in (("", 0), ("later-", 100)):
        write_made_dump(folder / f"{later}dump.xml.bz2", articles, changed_every=changed_every)
        if short:
            dump = write_made_dump(folder / f"{later}short.xml.bz2", short, changed_every=changed_every)
            settings = DownloadConfig(passage_words=SHORT_WORDS, workers=1)
            download(source=str(dump), passages=str(folder / f"{later}short"), config=settings)


def run_stage(stage: str, folder: Path) -> Run:
    """Run a stage as its command, in the folder of its corpus, and look at its memory."""
    home = {"RALM_HOME": str((folder / "home").absolute()), "RALM_TRACKING": "off"}
    peak = peak_memory([sys.executable, "-m", *command_of(stage, folder)], {**os.environ, **home})
    held = 0
    is_of_dump = stage.startswith(("download", "compare"))
    passages = read_artifact(str(folder / ("passages" if is_of_dump else "short"))).manifest.rows
    if stage in SEARCHED or stage.startswith("index"):
        manifest = read_artifact(str(folder / SEARCHED.get(stage, STAGES[stage]))).manifest
        held = round(manifest.rows * (manifest.details["bytes_per_vector"] + 8))
    return Run(passages, peak, held, read_json(str(folder / STAGES[stage] / TIMINGS))["elapsed_s"])


def command_of(stage: str, folder: Path) -> list[str]:
    """Module and arguments of a stage."""
    made, is_again = str(folder / STAGES[stage]), stage.endswith(" again")
    place = {name: str(folder / name) for name in STAGES.values()}
    name, _, detail = stage.removesuffix(" again").partition(" ")
    later = "later-" * is_again
    corpus = str(folder / f"{later}short")
    model, questions = str(folder.parent / "model"), str(folder.parent / "asked")
    pair = ["--passages", corpus, "--index", place["flat"], "--model", model, "--questions", questions]
    few = ["--config.num-passages=2", "--config.precision=fp32"]
    words = {
        "download": ["--source", str(folder / f"{later}dump.xml.bz2"), "--passages", made],
        "embed": ["--passages", corpus, "--model", model, "--embeddings", made, f"--config.block-passages={BLOCK}"],
        "index": [
            "--embeddings",
            place[f"{later}embeddings"],
            "--index",
            made,
            f"--config.kind={detail}",
        ],
        "evaluate": [*pair, "--predictions", made, *few, "--config.recall-at=[1,2]"],
        "train": [*pair, "--trained", made, *few, "--config.num-steps=4", "--config.warmup-steps=1"],
        "report": ["--before", place["predictions"], "--after", place["predictions"], "--report", made],
        "compare": ["--previous", place["passages"], "--passages", place["later-passages"], "--changes", made],
    }[name]
    if name == "report":
        words += ["--passages", corpus]
    elif name == "download":
        words.append("--config.workers=1")
    if is_again:
        words += {
            "download": ["--previous", place["passages"]],
            "embed": ["--previous-index", place["flat"], "--previous-passages", str(folder / "short")],
            "index": ["--previous", place[detail or "flat"]],
        }[name]
    return [f"components.{name}", *words]


def peak_memory(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Most bytes that a command and what it starts held at a time.

    Raises:
        RuntimeError: it failed.
    """
    peak, pids, looked_at = 0, [0], 0.0
    with subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if time.monotonic() - looked_at > LOOK_FOR_CHILDREN_S:
                with contextlib.suppress(psutil.NoSuchProcess):
                    pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(True))]
                looked_at = time.monotonic()
            peak = max(peak, sum(map(held_bytes, pids)))
            time.sleep(LOOK_S)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return peak


def held_bytes(pid: int) -> int:
    """Anonymous and shared bytes of a process, its part where others have them, too; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return sum(1024 * int(values[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem") if name in values)


def write_plots(folder: Path, rows: Mapping[str, Growth]) -> None:
    """Write `memory.svg` and `time.svg`: each stage against the size of the corpus."""
    for name, label in (("memory", "peak memory, MB"), ("time", "seconds")):
        lines = {
            stage: [(run.passages, run.peak / 1e6 if name == "memory" else run.seconds) for run in row.runs]
            for stage, row in rows.items()
        }
        (folder / f"{name}.svg").write_text(curves_plot(lines, "passages", label), encoding="utf-8")
