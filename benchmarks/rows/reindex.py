"""A re-index of a dump in which about 1 % of the passages changed, against a full rebuild of it; and of the same dump.

`benchmarks.reindex` measures it: one sentence is inserted, changed or deleted in so many articles that about 1 % of
the passages read otherwise than before (an edited sentence moves 1.1 to 1.3 passages), and download, embed, index and
compare are timed in this process, start-up not counted, MiniLM with its real weights, a flat index. A later dump has to
be decompressed and an index written whatever changed: the share of time falls with the cost of a passage.

- `encoded_share`: passages encoded over passages changed, times 1 %: the share of the embedding calls of a rebuild
  where exactly 1 % of the passages changed. Changed are those of the rebuild whose title, section and text no passage
  of the first build has, counted by their texts. `changed_share` is what it was here.
- `is_equal`: passages equal to the byte, and results within what is claimed: in fp32 the same ids; in bf16, where a
  text rounds differently in another batch, 99.9 % of them, and scores differ by at most 2^-8, the precision of bf16.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import inputs
from benchmarks import reindex as builds
from benchmarks.machine import is_slow
from benchmarks.made_dump import write_made_dump
from benchmarks.suite import Bench, Measured
from ralm.device import precision_name, resolve_dtype

EDITED_PERCENT = 18.0
"""Of the articles: with 23 passages to an article that is 1 % of the passages."""
LEAST_EQUAL_IDS = {torch.bfloat16: 0.999, torch.float32: 1.0}
MOST_SCORE_DIFFERENCE = {torch.bfloat16: 2**-8, torch.float32: 1e-5}


def measure(bench: Bench) -> Measured:
    """I1: what a re-index encodes, and how long it takes beside a rebuild."""
    work = bench.work / "reindex"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model = str(inputs.quickstart_model(bench).folder)
    dtype = torch.float32 if bench.small else resolve_dtype("auto", torch.device("cpu"))
    megabytes = 2 if is_slow() else 4
    dump = write_made_dump(work / "dump.xml.bz2", 60) if bench.small else inputs.wikipedia(bench, megabytes)
    settings = builds.Settings(model, ["flat"], precision_name(dtype))
    questions, k = (20, 10) if bench.small else (200, 100)
    unchanged, edited = builds.measure(dump, work, settings, [0, EDITED_PERCENT], questions, k, seed=0)
    shutil.rmtree(work)
    return Measured(figures_of(unchanged, edited, dtype), table_of(unchanged, edited))


def figures_of(unchanged: Mapping[str, Any], edited: Mapping[str, Any], dtype: torch.dtype) -> dict[str, float]:
    """The figures of two rows of `benchmarks.reindex`, encoded in `dtype`: the same dump again, and an edited one."""
    is_equal = all(
        row["equal_passages"]
        and row["equal_ids"] >= LEAST_EQUAL_IDS[dtype]
        and row["score_difference"] <= MOST_SCORE_DIFFERENCE[dtype]
        for row in (unchanged, edited)
    )
    return {
        "encoded_share": 0.01 * edited["encoded"] / edited["changed"],
        "time_share": edited["wall_ratio"],
        "is_equal": float(is_equal),
        "unchanged_encoded": float(unchanged["encoded"]),
        "changed_share": edited["changed"] / edited["passages"],
        "encoded_per_sentence": edited["encoded_per_edit"],
        "cpu_share": edited["cpu_ratio"],
        "unchanged_time_share": unchanged["wall_ratio"],
        "unchanged_of_parsing": sum(unchanged["reindex_wall_s"].values()) / unchanged["full_wall_s"]["download"],
        "equal_ids": edited["equal_ids"],
        "score_difference": edited["score_difference"],
    }


def table_of(unchanged: Mapping[str, Any], edited: Mapping[str, Any]) -> list[str]:
    """Seconds of each stage of a rebuild and of the re-indexes, with what each encoded."""
    stages = ["download", "embed", "index flat", "compare"]
    builds_of = {
        "rebuild": (edited["full_wall_s"], edited["full_cpu_s"], edited["passages"]),
        "re-index, edited dump": (edited["reindex_wall_s"], edited["reindex_cpu_s"], edited["encoded"]),
        "re-index, same dump": (unchanged["reindex_wall_s"], unchanged["reindex_cpu_s"], unchanged["encoded"]),
    }
    table = [
        f"| build | passages encoded | {' | '.join(f'{stage} s' for stage in stages)} | all s | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (wall, cpu, encoded) in builds_of.items():
        seconds = [*(wall.get(stage, 0.0) for stage in stages), sum(wall.values()), sum(cpu.values())]
        table.append(f"| {name} | {encoded} | {' | '.join(f'{value:.2f}' for value in seconds)} |")
    return table
