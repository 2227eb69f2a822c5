"""A re-index after small edits against a full rebuild of the same dump: seconds, encoded passages, equal results.

    OMP_NUM_THREADS=1 python -m benchmarks.reindex --dump DUMP --work DIR [--kind flat ivf_pq] [--max-articles N]

A real dump is built in full (download, embed, index). For each percentage, `benchmarks.edit_dump` edits one sentence in
so many of its articles; the edited dump is then built in full (without edits the first build is that), and re-indexed
from the first build: unchanged pages and vectors are taken over, the index is updated where its kind allows it, and a
report says what changed (that is counted as work of the re-index). All in this process after a warm-up, so that
start-up and imports do not count, with one worker; each build has a store of its own, so that none finds what another
has made. CPU time is that of the process and says more than wall time on a busy machine.

Questions are titles and sentences of the edited dump. `equal ids` is the share of passages that re-index and rebuild
both find, `score difference` the largest between scores at the same place. Vectors computed in other batches differ in
the last digit, more so in bf16: equality is claimed in fp32 (`--precision fp32`). `changed` are the passages of the
rebuild whose title, section and text no passage of the first build has: what has to be encoded.

Shapes: B questions, K passages found, N passages, D embedding size.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import dataclasses
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.edit_dump import edit_dump
from components.compare.stage import compare
from components.download.config import DownloadConfig
from components.download.stage import download
from components.embed.config import EmbedConfig
from components.embed.stage import embed
from components.index.config import IndexConfig
from components.index.stage import index
from ralm.artifacts.files import read_json
from ralm.artifacts.manifest import open_artifact, read_artifact
from ralm.artifacts.tables import read_table
from ralm.corpus.compressed import read_chunks
from ralm.corpus.sentences import sentence_ends
from ralm.index.search import Index, open_index
from ralm.log import set_up_logging
from ralm.model import Model, open_model
from ralm.retriever.embed import embed_questions
from ralm.retriever.encoder import Encoder

WARM_UP_ARTICLES = 40


@dataclasses.dataclass
class Build:
    """Artifacts of one build in a folder, and the wall and CPU seconds of each stage."""

    folder: Path
    wall_s: dict[str, float] = dataclasses.field(default_factory=dict)
    cpu_s: dict[str, float] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)

    def place(self, name: str) -> str:
        """Folder of an artifact."""
        return str(self.folder / name)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Take the time of a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s[name], self.cpu_s[name] = time.perf_counter() - wall, time.process_time() - cpu

    def total(self, kind: str) -> tuple[float, float]:
        """Wall and CPU seconds of a build with this kind of index."""
        names = [name for name in self.wall_s if not name.startswith("index ") or name == f"index {kind}"]
        return sum(self.wall_s[name] for name in names), sum(self.cpu_s[name] for name in names)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all builds have in common."""

    model: str
    kinds: Sequence[str]
    precision: Any

    def build(self, dump: Path, folder: Path, before: Build | None = None) -> Build:
        """Build everything of a dump, from scratch or after an earlier build."""
        os.environ["RALM_HOME"] = str(folder / "home")
        made = Build(folder)
        old = {name: before.place(name) if before else "" for name in ("passages", *self.kinds)}
        with made.timed("download"):
            config = DownloadConfig(workers=1)
            download(source=str(dump), passages=made.place("passages"), previous=old["passages"], config=config)
        with made.timed("embed"):
            manifest = embed(
                passages=made.place("passages"),
                model=self.model,
                embeddings=made.place("embeddings"),
                previous_index=old[self.kinds[0]],
                previous_passages=old["passages"],
                config=EmbedConfig(precision=self.precision),
            )
        for kind in self.kinds:
            with made.timed(f"index {kind}"):
                settings: Any = {"kind": kind}
                config_of_index = IndexConfig(**settings)
                index(
                    embeddings=made.place("embeddings"),
                    index=made.place(kind),
                    previous=old[kind],
                    config=config_of_index,
                )
        if before:
            with made.timed("compare"):
                compare(previous=old["passages"], passages=made.place("passages"), changes=made.place("changes"))
        timings = read_json(str(folder / "passages" / "timings.json"))
        made.counts = {**manifest.counts, "pages_taken_over": int(timings["pages_taken_over"])}
        return made


def shorten_dump(source: Path, target: Path, max_articles: int) -> Path:
    """Write the first pages of a dump, redirects not counted."""
    raw = b"".join(read_chunks(source)).decode("utf-8")
    end = raw.index("<page>")
    while max_articles and (start := raw.find("<page>", end)) >= 0:
        end = raw.index("</page>", start) + len("</page>")
        max_articles -= "#redirect" not in raw[start:end].lower()
    target.write_bytes(bz2.compress((raw[:end] + "\n</mediawiki>\n").encode()))
    return target


def make_questions(passages: str, number: int, seed: int) -> list[str]:
    """Titles, and sentences of the text, half and half."""
    places = [place for place, _ in open_artifact(passages, "passages").tables()]
    table = read_table(places, "passages/1", ["title", "text"])
    rows = table.take(
        sorted(random.Random(seed).sample(range(table.num_rows), min(number, table.num_rows)))
    ).to_pylist()
    sentences = [row["text"][: next(sentence_ends(row["text"]))] for row in rows[1::2]]
    return [row["title"] for row in rows[::2]] + sentences


def count_changed(before: str, after: str) -> int:
    """Passages that read as none of the earlier artifact does; by their texts, not by their hashes."""
    texts = []
    for place in (before, after):
        places = [part for part, _ in open_artifact(place, "passages").tables()]
        columns = read_table(places, "passages/1", ["title", "section", "text"]).to_pydict().values()
        texts.append(list(zip(*columns, strict=True)))
    known = set(texts[0])
    return sum(text not in known for text in texts[1])


def encode_questions(model: Model, questions: Sequence[str]) -> np.ndarray:
    """Question vectors, float32 [B, D]."""
    folder, device = model.question_encoder_folder, torch.device("cpu")
    encoder = Encoder.load(folder, model.retriever, device=device, dtype=torch.float32)
    return embed_questions(encoder, model.retriever, questions)


def compare_results(full: Index, part: Index, question_BD: np.ndarray, k: int) -> dict[str, float]:
    """How far two indices of the same passages find the same, and the recall of each against brute force."""
    k = min(k, full.num_passages)
    found = {"full": full.search(question_BD, k), "part": part.search(question_BD, k)}
    exact_BN = question_BD @ full.vectors(np.arange(full.num_passages)).T
    exact_BK = full.passage_ids[np.argpartition(-exact_BN, k - 1, axis=1)[:, :k]]
    ids = {"exact": exact_BK, **{name: result.passage_ids for name, result in found.items()}}
    return {
        "equal_ids": overlap(ids["full"], ids["part"]),
        "score_difference": float(np.abs(found["full"].scores - found["part"].scores).max()),
        "recall_of_rebuild": overlap(ids["exact"], ids["full"]),
        "recall_of_reindex": overlap(ids["exact"], ids["part"]),
    }


def overlap(one_BK: np.ndarray, other_BK: np.ndarray) -> float:
    """Share of the ids of each row that are in the other's, on average."""
    return float(np.mean([np.isin(one_K, other_K).mean() for one_K, other_K in zip(one_BK, other_BK, strict=True)]))


def measure(
    dump: Path, work: Path, settings: Settings, percents: Sequence[float], num_questions: int, k: int, seed: int
) -> list[dict[str, Any]]:
    """One row for each percentage and kind; the work folder must not hold earlier builds."""
    home = os.environ.get("RALM_HOME")
    try:
        return _measure(dump, work, settings, percents, num_questions, k, seed)
    finally:
        os.environ.pop("RALM_HOME") if home is None else os.environ.update(RALM_HOME=home)


def _measure(
    dump: Path, work: Path, settings: Settings, percents: Sequence[float], num_questions: int, k: int, seed: int
) -> list[dict[str, Any]]:
    small = shorten_dump(dump, work / "warm-up.xml.bz2", WARM_UP_ARTICLES)
    flat = dataclasses.replace(settings, kinds=("flat",))
    flat.build(small, work / "warm-up-2", flat.build(small, work / "warm-up-1"))
    first = settings.build(dump, work / "first")
    model, rows = open_model(settings.model), []
    for percent in percents:
        later = work / f"edited-{percent:g}.xml.bz2"
        edits = edit_dump(dump, later, percent=percent, seed=seed)
        full = settings.build(later, work / f"full-{percent:g}") if edits.sentences else first
        part = settings.build(later, work / f"part-{percent:g}", first)
        passages = [build.place("passages") for build in (first, full, part)]
        changed = count_changed(*passages[:2])
        digests = [{file.path: file.sha256 for file in read_artifact(place).manifest.files} for place in passages]
        question_BD = encode_questions(model, make_questions(full.place("passages"), num_questions, seed))
        for kind in settings.kinds:
            encoder = model.fingerprints["passage_encoder"]
            indices = [open_index(build.place(kind), passage_encoder=encoder) for build in (full, part)]
            (full_wall, full_cpu), (part_wall, part_cpu) = full.total(kind), part.total(kind)
            rows.append(
                {
                    "percent": percent,
                    "kind": kind,
                    "edited_sentences": len(edits.sentences),
                    "changed": changed,
                    "equal_passages": digests[1] == digests[2],
                    **part.counts,
                    "encoded_per_edit": part.counts["encoded"] / max(1, len(edits.sentences)),
                    "full_wall_s": full.wall_s,
                    "reindex_wall_s": part.wall_s,
                    "full_cpu_s": full.cpu_s,
                    "reindex_cpu_s": part.cpu_s,
                    "wall_ratio": part_wall / full_wall,
                    "cpu_ratio": part_cpu / full_cpu,
                    **compare_results(indices[0], indices[1], question_BD, k),
                }
            )
    return rows


def print_tables(rows: Sequence[dict[str, Any]], k: int) -> None:
    """Times, then what came out, as Markdown."""
    print(
        "| % | kind | build | download s | embed s | index s | compare s | all s | CPU s | of the rebuild: wall, CPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for name, ratio in (("full", ""), ("reindex", f"{row['wall_ratio']:.2%}, {row['cpu_ratio']:.2%}")):
            wall, cpu = row[f"{name}_wall_s"], row[f"{name}_cpu_s"]
            stages = ["download", "embed", f"index {row['kind']}", "compare"]
            seconds = [wall.get(stage, 0.0) for stage in stages]
            cells = [f"{value:.2f}" for value in (*seconds, sum(seconds), sum(cpu.get(stage, 0.0) for stage in stages))]
            print(f"| {row['percent']:g} | {row['kind']} | {name} | {' | '.join(cells)} | {ratio} |")
    print(
        "\n| % | kind | edited sentences | changed | encoded | per sentence | vectors taken over | pages taken over "
        f"| equal ids @{k} | score difference | recall@{k}: rebuild, re-index |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['percent']:g} | {row['kind']} | {row['edited_sentences']} | {row['changed']} | {row['encoded']} "
            f"| {row['encoded_per_edit']:.2f} | {row['taken_over']} | {row['pages_taken_over']} "
            f"| {row['equal_ids']:.5f} | {row['score_difference']:.1e} "
            f"| {row['recall_of_rebuild']:.4f}, {row['recall_of_reindex']:.4f} |"
        )


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path, required=True, help="MediaWiki export with one revision a page")
    parser.add_argument("--work", type=Path, required=True, help="a new folder for everything that is made")
    parser.add_argument("--model", help="model artifact; by default the quickstart's is fetched")
    parser.add_argument("--kind", nargs="+", default=["flat"], help="of the index")
    parser.add_argument("--percent", type=float, nargs="+", default=[0, 1, 5, 20], help="of the articles are edited")
    parser.add_argument("--precision", default="auto", help="of the encoder, as in `ralm embed`")
    parser.add_argument("--max-articles", type=int, help="use only the beginning of the dump")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    given = parser.parse_args(argv)
    set_up_logging()
    given.work.mkdir(parents=True)
    model, dump = given.model, given.dump
    if model is None:
        model = str(given.work / "model")
        download(source="asset:quickstart", model=model)
    if given.max_articles:
        dump = shorten_dump(dump, given.work / "dump.xml.bz2", given.max_articles)
    load = os.getloadavg()[0]
    settings = Settings(model, given.kind, given.precision)
    rows = measure(dump, given.work, settings, given.percent, given.questions, given.k, given.seed)
    if given.json:
        print(json.dumps({"load_before": load, "load_after": os.getloadavg()[0], "rows": rows}))
        return
    print_tables(rows, given.k)
    print(f"\n{torch.get_num_threads()} threads; load before {load:.1f}, after {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
