from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from components.embed.config import EmbedConfig
from components.embed.stage import embed, shard_rows
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.cli import run_stage
from ralm.errors import ArtifactError, ConfigError
from ralm.model import open_model
from ralm.retriever.vectors import read_vectors


def vectors(location: Path | str) -> tuple[np.ndarray, np.ndarray]:
    shard = next(Path(location).glob("shard-*-of-*/"), location)
    (place, _), *_ = open_artifact(str(shard), "embeddings").tables()
    return read_vectors(place)


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_shards_cover_the_passages_in_order(
    toy_passages: str, tiny_model: str, tmp_path: Path, num_shards: int
) -> None:
    found = []
    for shard in range(num_shards):
        place = tmp_path / str(shard)
        manifest = embed(
            passages=toy_passages, model=tiny_model, embeddings=str(place), shard=shard, num_shards=num_shards
        )
        assert [entry.path for entry in manifest.files] == [f"shard-{shard:05d}-of-{num_shards:05d}.parquet"]
        found.append(vectors(place))
    artifact = open_artifact(toy_passages, "passages")
    wanted = read_table([place for place, _ in artifact.tables()], "passages/1", ["passage_id"]).column(0).to_pylist()
    assert np.concatenate([ids for ids, _ in found]).tolist() == wanted
    assert np.concatenate([rows for _, rows in found]).shape == (30, 32)


def test_the_result_does_not_depend_on_blocks_or_batches(toy_passages: str, tiny_model: str, tmp_path: Path) -> None:
    config = EmbedConfig(dtype="f32", precision="fp32")
    configs = [config, dataclasses.replace(config, block_passages=7, token_budget=40)]
    found = []
    for number, config in enumerate(configs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RALM_HOME", str(tmp_path / f"home{number}"))
            place = tmp_path / str(number)
            embed(passages=toy_passages, model=tiny_model, embeddings=str(place), config=config)
            found.append(vectors(place))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_equal_runs_give_equal_bytes(toy_passages: str, tiny_model: str, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RALM_HOME", str(tmp_path / f"home{number}"))
            place = tmp_path / str(number)
            embed(passages=toy_passages, model=tiny_model, embeddings=str(place))
            names = ("manifest.json", "shard-00000-of-00001.parquet")
            files.append([(place / name).read_bytes() for name in names])
    assert files[0] == files[1]


def test_a_finished_shard_is_reused(
    toy_passages: str, tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    again = embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "a"))
    assert not first.reused
    assert again.reused
    assert "reused embeddings" in caplog.text
    other = embed(
        passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "b"), config=EmbedConfig(dtype="f32")
    )
    assert not other.reused


def test_the_manifest_says_what_the_vectors_belong_to(toy_passages: str, tiny_model: str, tmp_path: Path) -> None:
    manifest = embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path / "a"))
    encoder = open_model(tiny_model).fingerprints["passage_encoder"]
    assert manifest.inputs == {
        "passages": open_artifact(toy_passages, "passages").fingerprint,
        "passage_encoder": encoder,
    }
    assert manifest.details["passage_encoder"] == encoder
    assert (manifest.details["dimension"], manifest.details["dtype"]) == (32, "f16")


@pytest.mark.parametrize(
    ("shard", "num_shards", "message"),
    [
        (3, 3, "shard: expected 0 to 2 of 3 shards, found 3"),
        (-1, 3, "found -1"),
        (0, 0, "num_shards: expected at least 1"),
    ],
)
def test_shards_out_of_range(
    toy_passages: str, tiny_model: str, tmp_path: Path, shard: int, num_shards: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        embed(passages=toy_passages, model=tiny_model, embeddings=str(tmp_path), shard=shard, num_shards=num_shards)
    assert not (tmp_path / "manifest.json").exists()


def test_inputs_in_the_wrong_place(toy_passages: str, tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected a passages artifact, found a model artifact"):
        embed(passages=tiny_model, model=tiny_model, embeddings=str(tmp_path))


def test_command_line(toy_passages: str, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--passages", toy_passages, "--model", tiny_model, "--embeddings", str(tmp_path / "a")]
    assert run_stage(embed, [*places, "--shard", "1", "--num-shards", "2", "--config.dtype", "f32"]) == 0
    assert vectors(tmp_path / "a")[1].dtype == np.float32
    assert run_stage(embed, [*places, "--num-shards", "2", "--shard", "2"]) == 2
    assert "shard: expected 0 to 1 of 2 shards, found 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "f8"}, "dtype: expected f16 or f32"),
        ({"precision": "fp16"}, "precision: expected auto, bf16 or fp32"),
        ({"token_budget": -1}, "token_budget"),
        ({"block_passages": 0}, "block_passages"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbedConfig(**settings)  # type: ignore[arg-type]


def test_shards_differ_by_one_row_at_most() -> None:
    for num_rows in (0, 1, 7, 100):
        for num_shards in (1, 3, 8):
            cuts = [shard_rows(num_rows, shard, num_shards) for shard in range(num_shards)]
            sizes = [stop - start for start, stop in cuts]
            assert sum(sizes) == num_rows
            assert max(sizes) - min(sizes) <= 1
