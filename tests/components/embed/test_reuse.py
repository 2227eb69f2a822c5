"""A re-index encodes what changed: vectors of an earlier index are taken over by the content of their passages."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.download.stage import download
from components.embed.config import EmbedConfig
from components.embed.stage import embed
from components.index.config import IndexConfig
from components.index.stage import index
from ralm.artifacts.manifest import Manifest, open_artifact
from ralm.cli import run_stage
from ralm.errors import ArtifactError, ConfigError
from ralm.index.search import open_index
from ralm.retriever.encoder import Encoder
from ralm.retriever.vectors import read_vectors
from tests.conftest import toy_rows
from tests.corpora import Row, passage, write_passages

CONFIG = EmbedConfig(dtype="f32", precision="fp32")
ROWS = [
    passage(str(row["source_id"]), str(row["text"]), title=str(row["title"]), section=str(row["section"]))
    for row in toy_rows()
]
CHANGED = [*ROWS[:4], passage("2", "The willow is not what it was.", title="Willow"), *ROWS[5:]]
RENAMED = [passage(row["source_id"], row["text"], title="Tree", section=row["section"]) for row in ROWS[3:6]]
MOVED = [passage("99", row["text"], title=row["title"], section=row["section"]) for row in ROWS[3:6]]
CASES = {
    "unchanged": (ROWS, 0),
    "one passage changed": (CHANGED, 1),
    "one passage added": ([*ROWS, passage("50", "Rain fell.", title="Rain")], 1),
    "removed": (ROWS[7:20], 0),
    "reordered": (ROWS[::-1], 0),
    "a page renamed": ([*ROWS[:3], *RENAMED, *ROWS[6:]], 3),
    "a page moved to another id": ([*ROWS[:3], *ROWS[6:], *MOVED], 0),
    "all of it new": ([passage(row["source_id"], row["text"], title="X") for row in ROWS], 30),
}


def encode(folder: Path, model: str, earlier: Path | None = None, config: EmbedConfig = CONFIG) -> Manifest:
    """Embeds `passages` of a folder into its `embeddings`; `earlier` is a folder with `passages` and `index`."""
    return embed(
        passages=str(folder / "passages"),
        model=model,
        embeddings=str(folder / "embeddings"),
        previous_index=str(earlier / "index") if earlier else "",
        previous_passages=str(earlier / "passages") if earlier else "",
        config=config,
    )


def make_index(folder: Path, rows: Sequence[Row], model: str, config: EmbedConfig = CONFIG) -> Path:
    write_passages(folder / "passages", rows)
    encode(folder, model, config=config)
    storage = IndexConfig(storage=config.dtype)
    index(embeddings=str(folder / "embeddings"), index=str(folder / "index"), config=storage)
    return folder


@pytest.fixture
def earlier(tmp_path: Path, tiny_model: str) -> Path:
    return make_index(tmp_path / "earlier", ROWS, tiny_model)


def new_corpus(folder: Path, rows: Sequence[Row] = ROWS, **sizes: int) -> Path:
    write_passages(folder / "passages", rows, **sizes)
    return folder


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on the encoder's weights cannot be loaded."""

    def load(*_: Any, **__: Any) -> Encoder:
        raise AssertionError("the encoder was loaded")

    return lambda: monkeypatch.setattr(Encoder, "load", load)


def counts(manifest: Manifest) -> tuple[int, int]:
    assert manifest.counts["passages"] == manifest.counts["encoded"] + manifest.counts["taken_over"] == manifest.rows
    return manifest.counts["encoded"], manifest.counts["taken_over"]


def assert_equal_embeddings(one: Path, other: Path) -> None:
    files = [open_artifact(str(place), "embeddings").tables() for place in (one, other)]
    (ids, vector_ND), (other_ids, other_ND) = (read_vectors(place) for ((place, _),) in files)
    np.testing.assert_array_equal(ids, other_ids)
    np.testing.assert_allclose(vector_ND, other_ND, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_what_changed_is_encoded_and_the_result_is_that_of_a_full_run(
    tmp_path: Path, tiny_model: str, earlier: Path, case: str, num_shards: int
) -> None:
    rows, expected = CASES[case]
    new_corpus(tmp_path, rows)
    run = functools.partial(
        embed, passages=str(tmp_path / "passages"), model=tiny_model, num_shards=num_shards, config=CONFIG
    )
    before: dict[str, Any] = {"previous_passages": str(earlier / "passages"), "previous_index": str(earlier / "index")}
    encoded = taken_over = 0
    for shard in range(num_shards):
        assert counts(run(embeddings=str(tmp_path / "full"), shard=shard))[1] == 0
        found = counts(run(embeddings=str(tmp_path / "part"), shard=shard, **before))
        encoded, taken_over = encoded + found[0], taken_over + found[1]
        name = f"shard-{shard:05d}-of-{num_shards:05d}" if num_shards > 1 else ""
        assert_equal_embeddings(tmp_path / "full" / name, tmp_path / "part" / name)
    assert (encoded, taken_over) == (expected, len(rows) - expected)
    for name in ("full", "part"):
        config = IndexConfig(storage="f32")
        index(embeddings=str(tmp_path / name), index=str(tmp_path / f"{name}-index"), config=config)
    encoder = open_artifact(str(tmp_path / "full-index"), "index").manifest.details["passage_encoder"]
    searchers = [open_index(str(tmp_path / f"{name}-index"), passage_encoder=encoder) for name in ("full", "part")]
    question_BD = searchers[0].vectors(np.arange(len(rows))) + 0.1
    of_full, of_part = (searcher.search(question_BD, 10) for searcher in searchers)
    np.testing.assert_array_equal(of_full.passage_ids, of_part.passage_ids)
    np.testing.assert_allclose(of_full.scores, of_part.scores, atol=1e-4)


def test_an_unchanged_corpus_needs_no_encoder(
    tmp_path: Path, tiny_model: str, earlier: Path, no_encoder: Callable[[], None]
) -> None:
    no_encoder()
    manifest = encode(new_corpus(tmp_path / "same"), tiny_model, earlier)
    assert counts(manifest) == (0, 30)
    assert manifest.fingerprint == open_artifact(str(earlier / "embeddings"), "embeddings").fingerprint
    assert not manifest.reused
    with pytest.raises(AssertionError, match="the encoder was loaded"):
        encode(new_corpus(tmp_path / "changed", CHANGED), tiny_model, earlier)


@pytest.mark.parametrize("block_passages", [1, 5, 7, 15])
def test_blocks_and_row_groups_do_not_matter(
    tmp_path: Path, tiny_model: str, earlier: Path, block_passages: int
) -> None:
    """Blocks that end where row groups do as well."""
    for name in ("full", "part"):
        new_corpus(tmp_path / name, CHANGED, part_rows=20, group_rows=5)
    encode(tmp_path / "full", tiny_model)
    config = dataclasses.replace(CONFIG, block_passages=block_passages)
    assert counts(encode(tmp_path / "part", tiny_model, earlier, config)) == (1, 29)
    assert_equal_embeddings(tmp_path / "full" / "embeddings", tmp_path / "part" / "embeddings")


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_that_were_taken_over_have_their_bytes(
    tmp_path: Path, tiny_model: str, dtype: Any, precision: Any
) -> None:
    config = EmbedConfig(dtype=dtype, precision=precision)
    earlier = make_index(tmp_path / "earlier", ROWS, tiny_model, config)
    later = new_corpus(tmp_path / "later", CHANGED)
    assert counts(encode(later, tiny_model, earlier, config)) == (1, 29)
    files = [next((folder / "embeddings").glob("*.parquet")) for folder in (earlier, later)]
    (_, old_ND), (_, new_ND) = (read_vectors(str(file)) for file in files)
    assert old_ND.dtype == new_ND.dtype == np.dtype(dtype.replace("f", "float"))
    is_kept_N = np.arange(30) != 4
    np.testing.assert_array_equal(old_ND[is_kept_N], new_ND[is_kept_N])
    assert not np.array_equal(old_ND[4], new_ND[4])


def test_a_re_index_of_a_re_index(tmp_path: Path, tiny_model: str, earlier: Path) -> None:
    """Three dumps one after another; the last brings back texts of the first, which are kept nowhere."""
    before = earlier
    for number, (rows, expected) in enumerate([(CHANGED, 1), (CHANGED[:25], 0), (ROWS, 6)]):
        folder = new_corpus(tmp_path / str(number), rows)
        assert counts(encode(folder, tiny_model, before))[0] == expected
        places = {"embeddings": str(folder / "embeddings"), "index": str(folder / "index")}
        index(**places, previous=str(before / "index"), config=IndexConfig(storage="f32"))
        before = folder
    assert_equal_embeddings(earlier / "embeddings", before / "embeddings")


@pytest.fixture(scope="module")
def other_model_files(tmp_path_factory: pytest.TempPathFactory, tiny_model_files: Path) -> str:
    """Files of a model with the same weights and another setting of its passage encoder."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_model_files, folder)
    config = json.loads((folder / "retriever" / "config.json").read_text())
    (folder / "retriever" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EmbedConfig(dtype="f16", precision="fp32"), "its number format is f32, here it is f16"),
        (EmbedConfig(dtype="f32", precision="bf16"), "its precision is fp32, here it is bf16"),
        (None, "its passage encoder is"),
    ],
)
def test_vectors_of_another_make_are_not_mixed_in(
    tmp_path: Path,
    tiny_model: str,
    other_model_files: str,
    earlier: Path,
    caplog: pytest.LogCaptureFixture,
    config: EmbedConfig | None,
    message: str,
) -> None:
    model = tiny_model
    if config is None:
        model = str(tmp_path / "model")
        download(source=other_model_files, model=model)
    assert counts(encode(new_corpus(tmp_path / "a"), model, earlier, config or CONFIG)) == (30, 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(message in line and line.endswith("every passage is encoded") for line in warnings), warnings
    again = encode(new_corpus(tmp_path / "b"), model, config=config or CONFIG)
    assert again.reused  # the same artifact: nothing of the earlier index is in it


def test_an_index_of_other_passages_is_refused(tmp_path: Path, tiny_model: str, earlier: Path) -> None:
    write_passages(earlier / "passages", CHANGED)
    with pytest.raises(ArtifactError, match="index: made from passages"):
        encode(new_corpus(tmp_path / "new"), tiny_model, earlier)
    assert not (tmp_path / "new" / "embeddings").exists()


@pytest.mark.parametrize("given", ["previous_index", "previous_passages"])
def test_index_and_passages_go_together(
    tmp_path: Path, tiny_model: str, earlier: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    missing = "previous_passages" if given == "previous_index" else "previous_index"
    places: dict[str, Any] = {"passages": str(earlier / "passages"), "model": tiny_model}
    places["embeddings"] = str(tmp_path / "a")
    places[given] = str(earlier / given.removeprefix("previous_"))
    with pytest.raises(ConfigError, match=f"go together; missing: {missing}"):
        embed(**places)
    words = [word for name, value in places.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run_stage(embed, words) == 2
    assert "--previous-index and --previous-passages go together" in capsys.readouterr().err
