"""A re-index encodes what changed: vectors of an earlier index are taken over by the content of their passages."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


@dataclasses.dataclass(frozen=True)
class Earlier:
    """An index and the passages it was made from."""

    passages: str
    index: str

    @property
    def arguments(self) -> dict[str, str]:
        return {"previous_passages": self.passages, "previous_index": self.index}


def make_index(folder: Path, rows: Sequence[Row], model: str, config: EmbedConfig = CONFIG) -> Earlier:
    write_passages(folder / "passages", rows)
    embed(passages=str(folder / "passages"), model=model, embeddings=str(folder / "embeddings"), config=config)
    storage = IndexConfig(storage=config.dtype)
    index(embeddings=str(folder / "embeddings"), index=str(folder / "index"), config=storage)
    return Earlier(str(folder / "passages"), str(folder / "index"))


@pytest.fixture
def earlier(tmp_path: Path, tiny_model: str) -> Earlier:
    return make_index(tmp_path / "earlier", ROWS, tiny_model)


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
    tmp_path: Path, tiny_model: str, earlier: Earlier, case: str, num_shards: int
) -> None:
    rows, expected = CASES[case]
    write_passages(tmp_path / "passages", rows)
    common: dict[str, Any] = {"passages": str(tmp_path / "passages"), "model": tiny_model, "config": CONFIG}
    common |= {"num_shards": num_shards}
    encoded = taken_over = 0
    for shard in range(num_shards):
        full, part = tmp_path / "full" / str(shard), tmp_path / "part" / str(shard)
        assert counts(embed(embeddings=str(full.parent), shard=shard, **common))[1] == 0
        manifest = embed(embeddings=str(part.parent), shard=shard, **common, **earlier.arguments)
        encoded, taken_over = encoded + counts(manifest)[0], taken_over + counts(manifest)[1]
        names = [f"shard-{shard:05d}-of-{num_shards:05d}"] if num_shards > 1 else [""]
        assert_equal_embeddings(full.parent / names[0], part.parent / names[0])
    assert (encoded, taken_over) == (expected, len(rows) - expected)
    for name in ("full", "part"):
        config = IndexConfig(storage="f32")
        index(embeddings=str(tmp_path / name), index=str(tmp_path / f"{name}-index"), config=config)
    encoder = open_artifact(str(tmp_path / "full-index"), "index").manifest.details["passage_encoder"]
    opened = [open_index(str(tmp_path / f"{name}-index"), passage_encoder=encoder) for name in ("full", "part")]
    question_BD = opened[0].vectors(np.arange(len(rows))) + 0.1
    found = [searcher.search(question_BD, 10) for searcher in opened]
    np.testing.assert_array_equal(found[0].passage_ids, found[1].passage_ids)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-4)


def test_an_unchanged_corpus_needs_no_encoder(
    tmp_path: Path, tiny_model: str, earlier: Earlier, no_encoder: Callable[[], None]
) -> None:
    no_encoder()
    full = open_artifact(str(Path(earlier.index).parent / "embeddings"), "embeddings")
    manifest = embed(
        passages=earlier.passages, model=tiny_model, embeddings=str(tmp_path / "a"), config=CONFIG, **earlier.arguments
    )
    assert counts(manifest) == (0, 30)
    assert manifest.fingerprint == full.fingerprint
    assert not manifest.reused
    write_passages(tmp_path / "new", CHANGED)
    with pytest.raises(AssertionError, match="the encoder was loaded"):
        embed(passages=str(tmp_path / "new"), model=tiny_model, embeddings=str(tmp_path / "b"), **earlier.arguments)


@pytest.mark.parametrize("block_passages", [1, 5, 7, 15])
def test_blocks_and_row_groups_do_not_matter(
    tmp_path: Path, tiny_model: str, earlier: Earlier, block_passages: int
) -> None:
    """Blocks that end where row groups do as well."""
    write_passages(tmp_path / "passages", CHANGED, part_rows=20, group_rows=5)
    places = {"passages": str(tmp_path / "passages"), "model": tiny_model}
    embed(**places, embeddings=str(tmp_path / "full"), config=CONFIG)
    config = dataclasses.replace(CONFIG, block_passages=block_passages)
    manifest = embed(**places, embeddings=str(tmp_path / "part"), config=config, **earlier.arguments)
    assert counts(manifest) == (1, 29)
    assert_equal_embeddings(tmp_path / "full", tmp_path / "part")


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_that_were_taken_over_have_their_bytes(
    tmp_path: Path, tiny_model: str, dtype: Any, precision: Any
) -> None:
    config = EmbedConfig(dtype=dtype, precision=precision)
    earlier = make_index(tmp_path / "earlier", ROWS, tiny_model, config)
    write_passages(tmp_path / "passages", CHANGED)
    places = {"passages": str(tmp_path / "passages"), "model": tiny_model, "embeddings": str(tmp_path / "part")}
    assert counts(embed(**places, config=config, **earlier.arguments)) == (1, 29)
    files = [tmp_path / "earlier" / "embeddings", tmp_path / "part"]
    (_, old_ND), (_, new_ND) = (read_vectors(str(next(file.glob("*.parquet")))) for file in files)
    assert old_ND.dtype == new_ND.dtype == np.dtype(dtype.replace("f", "float"))
    is_kept_N = np.arange(30) != 4
    np.testing.assert_array_equal(old_ND[is_kept_N], new_ND[is_kept_N])
    assert not np.array_equal(old_ND[4], new_ND[4])


def test_a_re_index_of_a_re_index(tmp_path: Path, tiny_model: str, earlier: Earlier) -> None:
    """Three dumps one after another; the last brings back a text of the first, which is not kept anywhere."""
    before = earlier
    for number, (rows, expected) in enumerate([(CHANGED, 1), (CHANGED[:25], 0), (ROWS, 6)]):
        folder = tmp_path / str(number)
        write_passages(folder / "passages", rows)
        places = {"passages": str(folder / "passages"), "model": tiny_model, "embeddings": str(folder / "embeddings")}
        assert counts(embed(**places, config=CONFIG, **before.arguments))[0] == expected
        config = IndexConfig(storage="f32")
        index(embeddings=places["embeddings"], index=str(folder / "index"), previous=before.index, config=config)
        before = Earlier(places["passages"], str(folder / "index"))
    assert_equal_embeddings(tmp_path / "earlier" / "embeddings", tmp_path / "2" / "embeddings")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_files: Path) -> Path:
    """Files of a model whose passage encoder reads shorter passages."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_model_files, folder)
    config = json.loads((folder / "retriever" / "config.json").read_text())
    (folder / "retriever" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    return folder


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
    other_model: Path,
    earlier: Earlier,
    caplog: pytest.LogCaptureFixture,
    config: EmbedConfig | None,
    message: str,
) -> None:
    model = tiny_model
    if config is None:
        from components.download.stage import download

        model = str(tmp_path / "model")
        download(source=str(other_model), model=model)
    places = {"passages": earlier.passages, "model": model}
    manifest = embed(**places, embeddings=str(tmp_path / "a"), config=config or CONFIG, **earlier.arguments)
    assert counts(manifest) == (30, 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(message in line and line.endswith("every passage is encoded") for line in warnings), warnings
    again = embed(**places, embeddings=str(tmp_path / "b"), config=config or CONFIG)
    assert again.reused  # the same artifact: nothing of the earlier index is in it


def test_an_index_of_other_passages_is_refused(tmp_path: Path, tiny_model: str, earlier: Earlier) -> None:
    write_passages(tmp_path / "other", CHANGED)
    places = {"passages": earlier.passages, "model": tiny_model, "embeddings": str(tmp_path / "a")}
    with pytest.raises(ArtifactError, match="index: made from passages"):
        embed(**places, config=CONFIG, previous_index=earlier.index, previous_passages=str(tmp_path / "other"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("given", ["previous_index", "previous_passages"])
def test_index_and_passages_go_together(
    tmp_path: Path, tiny_model: str, earlier: Earlier, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    missing = "previous_passages" if given == "previous_index" else "previous_index"
    places = {"passages": earlier.passages, "model": tiny_model, "embeddings": str(tmp_path / "a")}
    with pytest.raises(ConfigError, match=f"go together; missing: {missing}"):
        embed(**places, **{given: earlier.arguments[given]})
    arguments = {**places, given: earlier.arguments[given]}
    words = [word for name, value in arguments.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run_stage(embed, words) == 2
    assert "--previous-index and --previous-passages go together" in capsys.readouterr().err
