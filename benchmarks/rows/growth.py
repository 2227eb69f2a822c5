"""How time grows with pages, passages, K and workers: each at three sizes, in turns, real text and weights.

A row without goals. The exponent is that of a power law through the smallest and the largest size: 1 is linear. By
workers it is the time of the same dump, in one stream for each of 100 pages, that shrinks.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch

from benchmarks import inputs
from benchmarks.gpu.joint_step import Setting, learner_way, make_batches
from benchmarks.gpu.passages import passage_table, write_passages
from benchmarks.machine import interleaved, median, spread
from benchmarks.made_dump import write_made_dump
from benchmarks.plots import curves_plot
from benchmarks.rows.dump import run_stage, write_multistream
from benchmarks.rows.generate import Ours, questions_with_passages
from benchmarks.suite import Bench, Measured
from components.embed.stage import embed
from ralm.device import resolve_dtype

CPU = torch.device("cpu")
GROWS = ("pages, MB of XML", "passages", "K, update", "K, answers")
WORKERS = "workers"
Ways = Mapping[int, Callable[[], object]]


def measure(bench: Bench) -> Measured:
    """Seconds at each size."""
    made = zip((*GROWS, WORKERS), (pages, passages, updates, answers, workers), strict=True)
    figures: dict[str, float] = {}
    table = ["| what grows | sizes | s | least to most | exponent |", "|---|---|---|---|---|"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, ways_of in made:
        ways = ways_of(bench)
        for way in list(ways.values())[: None if name.startswith("K") else 1]:
            way()  # warm: each K has a learner of its own
        times = interleaved({str(size): way for size, way in ways.items()}, CPU, min(bench.repeats, 3))
        sizes, spent = list(ways), [median(found) for found in times.values()]
        exponent = math.log(spent[-1] / spent[0]) / math.log(sizes[-1] / sizes[0])
        key = name.replace(",", "").replace(" ", "_")
        figures |= {f"{key}_{size}_s": each for size, each in zip(sizes, spent, strict=True)}
        figures[f"{key}_exponent"] = exponent
        cells = (", ".join(f"{each:,}" for each in sizes), ", ".join(f"{each:.3g}" for each in spent))
        table.append(f"| {name} | {' | '.join(cells)} | {'; '.join(map(spread, times.values()))} | {exponent:.2f} |")
        curves[name] = [(size / sizes[0], each / spent[0]) for size, each in zip(sizes, spent, strict=True)]
    plot = curves_plot(curves, "size over the smallest", "seconds over those of the smallest")
    (bench.work / "growth.svg").write_text(plot, encoding="utf-8")
    return Measured(figures, table)


def pages(bench: Bench) -> Ways:
    """The download stage, with one worker."""
    if bench.small:
        paths = {size: write_made_dump(bench.work / f"made-{size}.xml.bz2", 40 * size) for size in (1, 2, 4)}
    else:
        paths = {size: inputs.wikipedia(bench, size) for size in (6, 12, 24)}
    return {size: functools.partial(run_stage, bench, path, workers=1) for size, path in paths.items()}


def workers(bench: Bench) -> Ways:
    """The download stage with more workers; two cores have room for two."""
    source = write_made_dump(bench.work / "made-300.xml.bz2", 300) if bench.small else inputs.wikipedia(bench, 24)
    many = write_multistream(source, bench.work / f"multistream-{source.name}")
    return {number: functools.partial(run_stage, bench, many, workers=number) for number in (1, 2, 4)}


def passages(bench: Bench) -> Ways:
    """The embed stage, with MiniLM."""
    model = inputs.quickstart_model(bench)
    made = bench.work / "vectors"

    def stage(source: str) -> None:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(bench.work / "home" / "store" / "embeddings", ignore_errors=True)
        embed(passages=source, model=str(model.folder), embeddings=str(made))

    ways = {}
    for size in (16, 32, 64) if bench.small else (256, 512, 1024):
        source = str(bench.work / f"passages-of-{size}")
        write_passages(source, passage_table(inputs.passages(bench), size))
        ways[size] = functools.partial(stage, source)
    return ways


def updates(bench: Bench) -> Ways:
    """A joint update with one question."""
    model = inputs.quickstart_model(bench)
    sizes = (1, 2, 4) if bench.small else (5, 10, 20)
    table = passage_table(inputs.passages(bench), max(64, 4 * sizes[-1]))
    rows = table.select(["title", "section", "text"]).to_pylist()
    ways = {}
    for size in sizes:
        setting = Setting(
            reader=model.reader_folder,
            retriever=model.passage_encoder_folder,
            batch=1,
            num_passages=size,
            text_limit=48 if bench.small else 256,
        )
        ways[size] = learner_way(setting, make_batches(rows, 4, 1, size), CPU, setting.batch)[0]
    return ways


def answers(bench: Bench) -> Ways:
    """Encoding and answering 4 questions."""
    reader = Ours(inputs.quickstart_model(bench), resolve_dtype("auto", CPU))
    ways = {}
    for size in (1, 2, 4) if bench.small else (5, 10, 20):
        asked = questions_with_passages(bench, 4, size)
        ways[size] = functools.partial(_answer, reader, asked)
    return ways


def _answer(reader: Ours, asked: Sequence[tuple[str, list[SimpleNamespace]]]) -> list[str]:
    return reader.run([reader.encode(asked)])
