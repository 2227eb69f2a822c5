"""Bad input through the real command line: one line that names file and place, exit code 2, nothing that looks done."""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cli import main

DUMP = Path(__file__).resolve().parents[1] / "data" / "dump.xml"
KILT_PAGE = '{"id": "1", "input": "q", "output": [{"answer": "a", "provenance": ["x"]}]}'


@dataclass(frozen=True)
class Bench:
    """Where a case puts its bad files, and good artifacts for everything else."""

    folder: Path
    places: dict[str, str]

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def flags(self, *names: str, **changed: str) -> list[str]:
        places = {**{name: self.places[name] for name in names}, **changed}
        return [word for name, place in places.items() for word in (f"--{name}", place)]

    def download(self, source: str, *more: str) -> list[str]:
        return ["download", "--source", source, "--passages", str(self.output), *more]

    def questions(self, source: str) -> list[str]:
        return ["download", "--source", source, "--questions", str(self.output)]

    def shots(self, content: bytes) -> list[str]:
        train = self.file("train.jsonl", '{"question": "q", "answers": ["a"]}')
        return [*self.questions(train), "--config.shots", self.file("shots.txt", content)]

    def dataset(self, name: str, **files: str) -> list[str]:
        return [*self.questions(f"dataset:{name}"), "--config.dev-split", "hash", "--config.files", json.dumps(files)]

    def embed(self, *more: str, **changed: str) -> list[str]:
        return ["embed", *self.flags("passages", "model", **changed), "--embeddings", str(self.output), *more]

    def index(self, kind: str, setting: str, value: int) -> list[str]:
        words = ["index", "--embeddings", "nowhere", "--index", str(self.output)]
        return [*words, "--config.kind", kind, f"--config.{setting}", str(value)]

    def train(self, *more: str, **changed: str) -> list[str]:
        names = ("passages", "index", "model", "questions")
        return ["train", *self.flags(*names, **changed), "--trained", str(self.output), *more]

    def evaluate(self, *more: str, **changed: str) -> list[str]:
        names = ("passages", "index", "model", "questions")
        return ["evaluate", *self.flags(*names, **changed), "--predictions", str(self.output), *more]

    def search(self, *more: str, **changed: str) -> list[str]:
        return ["search", *self.flags("passages", "index", "model", **changed), "--question", "q", *more]


@pytest.fixture
def bench(tmp_path: Path, toy_passages: str, toy_index: str, tiny_model: str, toy_questions_artifact: str) -> Bench:
    places = {"passages": toy_passages, "index": toy_index, "model": tiny_model, "questions": toy_questions_artifact}
    return Bench(tmp_path, places)


def truncated_bz2(bench: Bench) -> list[str]:
    return bench.download(bench.file("cut.xml.bz2", bz2.compress(DUMP.read_bytes())[:-20]))


def wrong_checksum(bench: Bench) -> list[str]:
    content = bz2.compress(DUMP.read_bytes())
    name = "enwiki-20260801-pages-articles-multistream.xml.bz2"
    digest = hashlib.sha1(content + b"x").hexdigest()
    job = {"status": "done", "files": {name: {"size": len(content), "sha1": digest}}}
    bench.file(f"site/enwiki/20260801/{name}", content)
    bench.file("site/enwiki/20260801/dumpstatus.json", json.dumps({"jobs": {"articlesmultistreamdump": job}}))
    site = f"file://{bench.folder}/site"
    return bench.download("wiki:enwiki/20260801", "--config.wiki-base-url", site)


def malformed_xml(bench: Bench) -> list[str]:
    return bench.download(bench.file("bad.xml", DUMP.read_text().replace("</page>", "", 1)))


def broken_line_7(bench: Bench) -> list[str]:
    return bench.download(bench.file("my.jsonl", '{"title": "t", "text": "x"}\n' * 6 + "{broken\n"))


def missing_field(bench: Bench) -> list[str]:
    return bench.download(bench.file("my.jsonl", '{"title": "t", "text": "x"}\n{"title": "t"}\n'))


def empty_corpus(bench: Bench) -> list[str]:
    return bench.download(bench.file("empty.csv", "title,text\n"))


def fewer_passages_than_k(bench: Bench) -> list[str]:
    return bench.evaluate("--config.num-passages", "31")


def unknown_config_key(bench: Bench) -> list[str]:
    return bench.embed("--config", bench.file("embed.yaml", "dtype: f16\ntokens: 3\n"))


def wrong_type(bench: Bench) -> list[str]:
    return bench.embed("--config", bench.file("embed.yaml", "token_budget: many\n"))


def hostile_tar(bench: Bench) -> str:
    path = bench.folder / "h.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil.csv"))
    return str(path)


def latin_tar(bench: Bench) -> str:
    path = bench.folder / "m.tar"
    content = "q,\xe9,b,c,d,A\n".encode("latin-1")
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("data/test/x_test.csv")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return str(path)


def embeddings_of_another_model(bench: Bench) -> list[str]:
    return bench.evaluate(model=another_model(bench))


def another_model(bench: Bench) -> str:
    """The toy model with other tokens for passages, which makes it another encoder."""
    source = bench.folder / "bundle"
    for name in ("passage", "question"):
        if (Path(bench.places["model"]) / "retriever" / name).is_dir():
            shutil.copytree(Path(bench.places["model"]) / "retriever" / name, source / "retriever", dirs_exist_ok=True)
    shutil.copytree(Path(bench.places["model"]) / "reader", source / "reader")
    place = str(bench.folder / "other-model")
    assert main(["download", "--source", str(source), "--model", place, "--config.model.retriever.pooling", "cls"]) == 0
    return place


THE_TEN: dict[str, tuple[Callable[[Bench], list[str]], str]] = {
    "truncated bz2": (truncated_bz2, "cut.xml.bz2: the bz2 data ends too early, at byte"),
    "wrong checksum": (wrong_checksum, "multistream.xml.bz2: expected sha1"),
    "malformed XML": (malformed_xml, "bad.xml: malformed XML at line"),
    "jsonl with a broken line 7": (broken_line_7, "my.jsonl line 7: no JSON"),
    "missing field": (missing_field, "my.jsonl line 2: missing field 'text'"),
    "empty corpus": (empty_corpus, "empty.csv: the corpus is empty"),
    "fewer passages than k": (fewer_passages_than_k, "index: the corpus has 30 passages, but config.num_passages asks"),
    "unknown config key": (unknown_config_key, "embed.yaml: unknown setting 'tokens', expected one of dtype"),
    "wrong type": (wrong_type, "embed.yaml: config.token_budget: expected int, found many"),
    "embeddings of another model": (embeddings_of_another_model, "index: its vectors were made by passage encoder"),
}


def run(words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail, with nothing published."""
    before = sorted(Path(os.environ["RALM_HOME"]).rglob("manifest.json"))
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    (line,) = [text for text in printed.err.splitlines() if text.startswith("ralm: error: ")]
    assert not output.is_dir() or not (output / "manifest.json").exists()
    assert sorted(Path(os.environ["RALM_HOME"]).rglob("manifest.json")) == before
    return line


@pytest.mark.parametrize("name", THE_TEN)
def test_each_gets_one_line_that_names_file_and_place(
    name: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    make, expected = THE_TEN[name]
    words = make(bench)
    assert expected in run(words, bench.output, capsys)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda b: b.download(b.file("a.csv", "title,text\nt,\xe9\n".encode("latin-1"))), "a.csv line 2: byte 3"),
        (lambda b: b.download(b.file("a.jsonl", b'{"title": "t", "text": "\xe9"}')), "a.jsonl line 1: byte 25"),
        (
            lambda b: b.download(b.file("a.jsonl", '{"title": "t", "text": "x \\ud83d"}')),
            "a.jsonl line 1: \\ud83d at column",
        ),
        (lambda b: b.download(b.file("a.csv", "title,text,Text\na,b,c\n")), "a.csv: the header names 'text' twice"),
        (lambda b: b.download(b.file("a.csv", 'title,text\na,"b\n')), "a.csv line 2: no ','-separated table"),
        (lambda b: b.download(b.file("a.csv", "title,text\na,b,c\n")), "a.csv line 2: expected 2 fields"),
        (lambda b: b.download(b.file("a.csv", "name,text\na,b\n")), "a.csv line 2: missing field 'title'"),
        (lambda b: b.download(b.file("a.parquet", b"PAR1 no")), "a.parquet: no readable Parquet file"),
        (lambda b: b.download(b.file("a.txt", " \n")), "a.txt: the corpus is empty"),
        (lambda b: b.download(f"{b.folder}/nothing.csv"), "nothing.csv"),
        (lambda b: b.download(str(DUMP), "--config.passage-words", "2"), "passage_words: expected at least 8, found 2"),
        (
            lambda b: b.questions(b.file("test.jsonl", '{"question": "q"}\n')),
            "test.jsonl line 1: missing field 'answers'",
        ),
        (lambda b: b.questions(b.file("test.jsonl", '{"question": "q", "answers": [3]}')), "test.jsonl line 1: field"),
        (lambda b: b.questions(b.file("test.jsonl", "")), "test.jsonl: no questions in it"),
        (
            lambda b: b.dataset("nq-open", test=b.file("nq.jsonl", '{"question": "q"}\n')),
            "nq.jsonl line 1: field 'answer': expected a list, found nothing",
        ),
        (
            lambda b: b.dataset("fever", train=b.file("f.jsonl", '{"id": 1, "claim": "c", "label": "TRUE"}\n')),
            "f.jsonl line 1: field 'label': expected one of SUPPORTS, REFUTES, NOT ENOUGH INFO, found 'TRUE'",
        ),
        (
            lambda b: b.dataset("kilt/nq", dev=b.file("k.jsonl", '{"id": "1", "output": []}\n')),
            "k.jsonl line 1: field 'input': expected text, found nothing",
        ),
        (
            lambda b: b.dataset("templama", dev=b.file("t.json", '{"query": "x", "date": "2017", "id": "1"}\n')),
            "t.json line 1: field 'query': expected a text with _X_, found 'x'",
        ),
        (
            lambda b: b.dataset("triviaqa", test=b.file("t.json", '{"Data": [{"QuestionId": "1"}]}')),
            "t.json record 1: field 'Answer.Value': expected text, found nothing",
        ),
        (
            lambda b: b.dataset("mmlu/zero-shot", archive=b.file("m.tar", "no archive")),
            "m.tar: no readable tar or zip archive",
        ),
        (
            lambda b: b.dataset("mmlu/zero-shot", archive=hostile_tar(b)),
            "h.tar: '../../evil.csv' leads out of the archive",
        ),
        (
            lambda b: b.dataset("mmlu/zero-shot", archive=latin_tar(b)),
            "m.tar: data/test/x_test.csv: no UTF-8 behind line 0",
        ),
        (
            lambda b: b.dataset("triviaqa", test=b.file("t.json", '{"Data": [' + "[" * 100_000)),
            "t.json record 1: no JSON: maximum recursion",
        ),
        (
            lambda b: b.dataset("triviaqa", test=b.file("t.json", '{"Data": [{"QuestionId": ' + "9" * 5000 + "}]}")),
            "t.json record 1: no JSON: Exceeds the limit",
        ),
        (
            lambda b: b.dataset("triviaqa", test=b.file("t.json", '{"Data": [{"QuestionId": "\\ud83d"}]}')),
            "t.json record 1: \\ud83d is half a character",
        ),
        (
            lambda b: b.dataset("kilt/nq", dev=b.file("k.jsonl", '{"id": "1", "input": "q", "output": ["x"]}\n')),
            "k.jsonl line 1: field 'output': expected a list of objects, found str in it",
        ),
        (
            lambda b: b.dataset("kilt/nq", dev=b.file("k.jsonl", KILT_PAGE)),
            "k.jsonl line 1: output: field 'provenance': expected a list of objects, found str in it",
        ),
        (lambda b: b.shots(b"1\n\xe9"), "shots.txt: byte 2 is not UTF-8"),
        (
            lambda b: b.shots(b"[" * 100_000),
            "shots.txt: expected row numbers, as a JSON list or one a line: maximum rec",
        ),
        (lambda b: b.shots(b"9" * 23), "shots: expected rows from 0 to 0 of train, found 999"),
        (
            lambda b: b.questions(b.file("test.jsonl", '{"question": "q", "answers": ["a"], "positive_ids": [1e30]}')),
            "test.jsonl line 1: field 'positive_ids': expected passage ids below 2**63, found",
        ),
        (
            lambda b: b.questions(b.file("test.jsonl", '{"question": "q", "answer": "B", "options": {"B": "x"}}')),
            "test.jsonl line 1: field 'options': expected the letters from A on without a gap, found B",
        ),
        (lambda b: b.index("hnsw", "hnsw-m", 10**14), "hnsw_m: expected auto or a number from 2 to 1024, found 1000"),
        (
            lambda b: b.index("hnsw", "hnsw-ef", 10**14),
            "hnsw_ef: expected auto or a number from 1 to 2147483647, found",
        ),
        (lambda b: b.index("flat", "num-probes", 10**14), "num_probes: expected 1 to 1000000, found 100000000000000"),
        (lambda b: b.dataset("squad"), "dataset:squad: unknown question set; there are dataset:nq-open"),
        (lambda b: b.questions("corpus:mlm"), "corpus:mlm is made from passages; give --corpus"),
        (
            lambda b: [*b.questions("corpus:mlm"), "--corpus", b.places["passages"]],
            "30 passages can be asked about, expected over num_test + num_dev = 2000",
        ),
        (
            lambda b: [*b.questions("corpus:mlm"), "--corpus", b.places["questions"]],
            "expected a passages artifact, found a questions artifact",
        ),
        (
            lambda b: b.download("atlas:models/atlas/base"),
            "expected a corpus such as atlas:corpora/wiki/enwiki-dec2018",
        ),
        (lambda b: b.download("atlas:corpora/wiki/enwiki"), "unknown key; there are corpora/wiki/enwiki-dec2017"),
        (lambda b: b.embed(passages=b.places["questions"]), "expected a passages artifact, found a questions artifact"),
        (
            lambda b: b.embed(model=b.file("m/manifest.json", "{")),
            "manifest.json: expected the folder of an artifact, found a file",
        ),
        (lambda b: b.embed(passages=f"{b.folder}/none"), "none: no such artifact"),
        (lambda b: b.embed("--embeddings", b.file("taken", "x")), "taken: expected a folder for the artifact, found a"),
        (
            lambda b: b.embed("--embeddings", os.path.dirname(b.file("mine/x", "x"))),
            "mine: the folder holds files that",
        ),
        (lambda b: b.embed("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (lambda b: b.embed("--config", b.file("c.yaml", "a: [")), "line 1, column 5"),
        (lambda b: b.embed("--shard", "1"), "shard: expected 0 to 0 of 1 shards, found 1"),
        (lambda b: b.train("--config.num-passages", "31"), "index: the corpus has 30 passages, fewer than the 31"),
        (lambda b: b.train("--config.split", "nothing"), "questions: no split 'nothing'; there are: dev, test, train"),
        (lambda b: b.search("--k", "0"), "k: expected at least 1, found 0"),
        (lambda b: b.search("--question", " "), "question: expected a text, found an empty one"),
        (lambda b: b.search(passages=b.places["questions"]), "expected a passages artifact, found a questions"),
        (lambda b: b.search(model=another_model(b)), "index: its vectors were made by passage encoder"),
    ],
)
def test_other_bad_input(
    make: Callable[[Bench], list[str]], expected: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    words = make(bench)
    assert expected in run(words, bench.output, capsys)
