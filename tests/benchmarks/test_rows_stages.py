"""The rows I1, O1 and M1 in tiny sizes, and that each notices what it is to notice."""

from __future__ import annotations

import importlib
import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.goals import goals_of
from benchmarks.made_dump import write_made_dump
from benchmarks.rows import growth, memory, overhead, reindex
from benchmarks.suite import Bench, Measured
from ralm.artifacts.tables import read_table
from ralm.cli import build_parser, normalise_flags

BF16 = torch.bfloat16
SAME: dict[str, Any] = {
    "encoded": 10,
    "changed": 10,
    "passages": 1000,
    "equal_passages": True,
    "equal_ids": 1.0,
    "score_difference": 1e-4,
    "wall_ratio": 0.05,
    "cpu_ratio": 0.05,
    "encoded_per_edit": 1.2,
    "reindex_wall_s": {"download": 1.0},
    "full_wall_s": {"download": 2.0},
}


def has_goals(found: Measured, row: str) -> bool:
    """Whether each goal has a figure, and the table its columns."""
    widths = [line.count("|") for line in found.table if line.startswith("|")]
    return {goal.figure for goal in goals_of(row)} <= set(found.figures) and min(widths) > 2


def test_a_small_reindex(tmp_path: Path) -> None:
    found = reindex.measure(Bench(tmp_path, small=True))
    assert has_goals(found, "I1")
    assert found.figures["is_equal"] == 1.0
    assert found.figures["encoded_share"] == pytest.approx(0.01)
    assert found.figures["unchanged_encoded"] == 0.0
    assert 0 < found.figures["changed_share"] < 0.2


@pytest.mark.parametrize(
    "wrong",
    [{"equal_passages": False}, {"equal_ids": 0.99}, {"score_difference": 0.01}],
    ids=lambda one: next(iter(one)),
)
def test_a_reindex_that_is_no_rebuild_is_noticed(wrong: dict[str, Any]) -> None:
    assert reindex.figures_of({**SAME, "encoded": 0}, SAME, BF16)["is_equal"] == 1.0
    assert reindex.figures_of(SAME, {**SAME, **wrong}, BF16)["is_equal"] == 0.0
    assert reindex.figures_of({**SAME, **wrong}, SAME, BF16)["is_equal"] == 0.0


def test_in_fp32_a_reindex_is_held_to_fp32() -> None:
    close = {**SAME, "score_difference": 1e-6}
    assert reindex.figures_of(close, close, torch.float32)["is_equal"] == 1.0
    assert reindex.figures_of(close, {**close, "equal_ids": 0.9995}, torch.float32)["is_equal"] == 0.0
    assert reindex.figures_of(SAME, close, torch.float32)["is_equal"] == 0.0


def test_passages_that_were_encoded_without_need_are_noticed() -> None:
    assert reindex.figures_of(SAME, {**SAME, "encoded": 20}, BF16)["encoded_share"] == pytest.approx(0.02)
    assert reindex.figures_of(SAME, SAME, BF16)["unchanged_encoded"] == 10.0


def test_a_small_run_of_empty_tasks(tmp_path: Path) -> None:
    overhead.write_graph(tmp_path / "graph.yaml", 2, overhead.BASE_IMAGE)
    seconds, events = overhead.run_graph(tmp_path, tmp_path / "graph.yaml")
    assert seconds > 0
    assert [event["stage"] for event in events] == ["empty", "empty"]
    assert len({event["fingerprint"] for event in events}) == 2
    assert [event["counts"] for event in events] == [{"torch": 0}, {"torch": 0}]


def test_a_command_that_imports_torch_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "needless.py").write_text("import torch\n")
    program = overhead.ALONE.replace("import json", "import needless, json")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    words = ["plan", "--recipe", "quickstart"]
    for source, expected in ((overhead.ALONE, 0), (program, overhead.WITH_TORCH)):
        command = [sys.executable, "-c", source, *words]
        assert overhead.run(command, tmp_path, allowed=(0, overhead.WITH_TORCH), PYTHONPATH=path) == expected
    with pytest.raises(RuntimeError, match="ended with 2"):
        overhead.run([sys.executable, "-c", overhead.ALONE, "plan"], tmp_path)


def test_a_small_look_at_memory(tmp_path: Path) -> None:
    found = memory.measure(Bench(tmp_path, small=True))
    assert has_goals(found, "M1")
    assert found.figures["growth"] < 2
    for name in ("memory", "time"):
        drawing = (tmp_path / f"{name}.svg").read_text()
        assert drawing.startswith("<svg xmlns=")
        assert drawing.count('class="line') == drawing.count('<text class="of-') == len(memory.SMALL)


@pytest.mark.parametrize("stage", memory.STAGES)
def test_the_command_of_a_stage_is_understood(stage: str, tmp_path: Path) -> None:
    module, *words = memory.command_of(stage, tmp_path)
    name = module.removeprefix("components.")
    function = getattr(importlib.import_module(f"{module}.stage"), name)
    given = build_parser(function).parse_args(normalise_flags(words))
    assert str(tmp_path / memory.STAGES[stage]) in [str(value) for value in given.as_flat().__dict__.values()]


def test_peak_memory_counts_children_and_no_mapped_files(tmp_path: Path) -> None:
    wait = "import time; time.sleep(0.3)"
    hold = f"held = bytearray(b'x') * 60_000_000; {wait}"
    (tmp_path / "file").write_bytes(b"x" * 60_000_000)
    mapped = f"import mmap; file = open({str(tmp_path / 'file')!r}, 'rb')"
    mapped += f"; held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(held[::4096]); {wait}"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    sizes = [memory.peak_memory([sys.executable, "-c", source], os.environ) for source in (wait, hold, mapped, child)]
    assert 59e6 < sizes[1] - sizes[0] < 70e6
    assert abs(sizes[2] - sizes[0]) < 8e6
    assert 59e6 < sizes[3] - sizes[0] < 90e6
    with pytest.raises(RuntimeError, match="ended with 3"):
        memory.peak_memory([sys.executable, "-c", "raise SystemExit(3)"], os.environ)


def test_growth_is_without_the_index() -> None:
    runs = [memory.Run(10, 100, 0, 1.0), memory.Run(40, 140, 30, 1.0), memory.Run(160, 260, 120, 1.0)]
    growth = memory.Growth(runs)
    assert (growth.growth, growth.bytes_per_passage) == (1.4, 40 / 150)


def test_a_made_dump_is_the_same_again_and_changes_where_it_is_asked_to(tmp_path: Path) -> None:
    from components.download.stage import download

    texts = []
    for name, changed_every in (("one", 0), ("two", 0), ("later", 5)):
        dump = write_made_dump(tmp_path / f"{name}.xml.bz2", 10, changed_every=changed_every)
        download(source=str(dump), passages=str(tmp_path / name))
        table = read_table(str(tmp_path / name / "part-00000.parquet"), "passages/1", ["title", "text"])
        texts.append({(row["title"], row["text"]) for row in table.to_pylist()})
    assert texts[0] == texts[1]
    assert {title for title, _ in texts[2] - texts[0]} == {"Town 0", "Town 5"}
    assert json.dumps(sorted(texts[0])).count("Town 3") > 1


def test_growth_by_pages_passages_passages_read_and_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    found = growth.measure(Bench(tmp_path, small=True, repeats=1))
    assert len(found.table) == 2 + len(growth.GROWS) + 1
    assert {"K_update_1_s", "K_update_4_s", "workers_exponent", "passages_64_s"} <= found.figures.keys()
    ElementTree.parse(tmp_path / "growth.svg")


def test_the_exponent_is_that_of_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pages", "passages", "updates", "answers", "workers"):
        monkeypatch.setattr(growth, name, lambda bench: {size: lambda: None for size in (1, 2, 4)})
    monkeypatch.setattr(growth, "interleaved", lambda ways, *_: {name: [float(name) ** 2] for name in ways})
    figures = growth.measure(Bench(tmp_path)).figures
    assert figures["pages_MB_of_XML_exponent"] == figures["workers_exponent"] == pytest.approx(2.0)
