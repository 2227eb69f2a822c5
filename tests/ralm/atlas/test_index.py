"""Official index shards -> our artifacts -> official shards. Spec 2.1, rows 6, B (S shards), 7 and 24."""

from __future__ import annotations

import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from components.embed.config import EmbedConfig
from components.embed.stage import embed
from components.index.stage import index as build_index
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.atlas.index_export import export_index
from ralm.atlas.index_import import import_index
from ralm.atlas.shards import bare_title, find_shards
from ralm.atlas.torch_file import save_torch_file
from ralm.corpus.lookup import PassageLookup
from ralm.errors import ArtifactError, ConfigError, RalmError
from ralm.index.search import open_index
from ralm.model import open_model
from ralm.model_build import build_model
from ralm.retriever.vectors import read_vectors
from tests.conftest import toy_rows
from tests.ralm.atlas.conftest import WriteCheckpoint, passage_rows, write_shard


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """30 passages as Atlas holds them; one without a section, two that are equal."""
    rows = passage_rows(toy_rows())
    rows[4] = {**rows[4], "title": "Willow", "section": ""}
    rows[9] = dict(rows[8])
    return rows


@pytest.fixture
def vectors(rows: list[dict[str, str]], bert: BertModel, tiny_model_files: Path) -> torch.Tensor:
    """Their vectors by plain transformers, fp16 [32, 30]: the mean over the tokens of `{title} {text}`."""
    tokenizer = Tokenizer.from_file(str(tiny_model_files / "retriever" / "tokenizer.json"))
    columns = []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([tokenizer.encode(f"{row['title']} {row['text']}").ids])
            columns.append(bert(ids).last_hidden_state.mean(1)[0])
    return torch.stack(columns, dim=1).half()


@pytest.fixture
def model(write_official: WriteCheckpoint, tiny_model_files: Path, tmp_path: Path) -> str:
    parts = {name: str(tiny_model_files / name) for name in ("retriever", "reader")}
    build_model(str(tmp_path / "model"), source=str(write_official()), **parts)
    return str(tmp_path / "model")


def write_index(folder: Path, rows: list[dict[str, Any]], vectors: torch.Tensor, sizes: list[int]) -> Path:
    start = 0
    for number, size in enumerate(sizes):
        write_shard(folder, number, rows[start : start + size], vectors[:, start : start + size].clone())
        start += size
    return folder


def load(folder: Path, number: int) -> tuple[list[dict[str, str]], torch.Tensor]:
    """A shard as Atlas reads it."""
    passages = pickle.loads((folder / f"passages.{number}.pt").read_bytes())
    return passages, torch.load(folder / f"embeddings.{number}.pt", weights_only=False)


def take(source: Path, model: str, tmp_path: Path, **options: Any) -> tuple[str, str]:
    passages, embeddings = str(tmp_path / "passages"), str(tmp_path / "embeddings")
    import_index(source=str(source), model=model, passages=passages, embeddings=embeddings, **options)
    return passages, embeddings


@pytest.mark.parametrize("sizes", [[30], [10, 10, 10], [4, 4, 4, 4, 4, 4, 4, 2], [1] * 30, [7, 0, 23, 0]])
def test_any_number_of_shards_in_the_order_of_the_files(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path, sizes: list[int]
) -> None:
    """Row 6: no number of shards is expected, and the last may be short, empty or absent."""
    passages, embeddings = take(write_index(tmp_path / "shards", rows, vectors, sizes), model, tmp_path)
    places = [place for place, _ in open_artifact(passages, "passages").tables()]
    found = read_table(places, "passages/1").to_pylist()
    assert [row["source_id"] for row in found] == [row["id"] for row in rows]
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert (found[0]["title"], found[0]["section"]) == ("Granite", "Colour")
    assert (found[4]["title"], found[4]["section"]) == ("Willow", "")
    stored = [read_vectors(place) for place, _ in open_artifact(embeddings, "embeddings").tables()]
    assert [int(id_) for ids, _ in stored for id_ in ids] == [row["passage_id"] for row in found]
    matrix = torch.cat([torch.from_numpy(part.copy()) for _, part in stored])
    assert torch.equal(matrix, vectors.T)


@pytest.mark.parametrize("num_shards", [1, 3, 8, 128])
def test_official_to_ours_to_official_is_bit_exact(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path, num_shards: int
) -> None:
    """Rows 6 and B: there are always as many files as shards, with the rows rounded up in each."""
    size = -(-30 // num_shards)
    sizes = [max(0, min(size, 30 - number * size)) for number in range(num_shards)]
    source = write_index(tmp_path / "shards", rows, vectors, sizes)
    passages, embeddings = take(source, model, tmp_path)
    build_index(embeddings=embeddings, index=str(tmp_path / "index"))
    output = export_index(
        index=str(tmp_path / "index"), passages=passages, output=str(tmp_path / "back"), num_shards=num_shards
    )
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in source.iterdir())
    for number in range(num_shards):
        (before, vector_before), (after, vector_after) = load(source, number), load(output, number)
        assert before == after
        assert vector_before.dtype == vector_after.dtype == torch.float16
        assert vector_before.shape == vector_after.shape
        assert torch.equal(vector_before, vector_after)


def test_ours_to_official_to_ours(toy_passages: str, toy_index: str, tiny_model: str, tmp_path: Path) -> None:
    export_index(index=toy_index, passages=toy_passages, output=str(tmp_path / "shards"), num_shards=4)
    passages, embeddings = take(tmp_path / "shards", tiny_model, tmp_path)
    build_index(embeddings=embeddings, index=str(tmp_path / "index"))
    encoder = open_model(tiny_model).fingerprints["passage_encoder"]
    first, second = (open_index(place, passage_encoder=encoder) for place in (toy_index, str(tmp_path / "index")))
    every = torch.arange(30).numpy()
    assert (first.vectors(every) == second.vectors(every)).all()
    before = PassageLookup(toy_passages).get(first.passage_ids)
    after = PassageLookup(passages).get(second.passage_ids)
    shown = [[(found.source_id, found.title, found.section, found.text) for found in side] for side in (before, after)]
    assert shown[0] == shown[1]


def test_the_imported_index_answers_like_one_embedded_here(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path
) -> None:
    passages, embeddings = take(write_index(tmp_path / "shards", rows, vectors, [16, 14]), model, tmp_path)
    embed(passages=passages, model=model, embeddings=str(tmp_path / "own"), config=EmbedConfig(precision="fp32"))
    encoder, found = open_model(model).fingerprints["passage_encoder"], []
    for name in (embeddings, str(tmp_path / "own")):
        build_index(embeddings=name, index=f"{name}-index")
        opened = open_index(f"{name}-index", passage_encoder=encoder)
        found.append(opened.passage_ids[opened.search(vectors.T.float().numpy()[:8], 3)[1][:, 0]])
    assert found[0].tolist() == found[1].tolist()


def test_only_the_rows_of_a_shard_are_saved(toy_passages: str, toy_index: str, tmp_path: Path) -> None:
    """Upstream once saved the whole storage behind each slice: 128 times the index."""
    export_index(index=toy_index, passages=toy_passages, output=str(tmp_path / "out"), num_shards=10)
    for number in range(10):
        vector_DN = load(tmp_path / "out", number)[1]
        assert vector_DN.shape == (32, 3)
        assert vector_DN.untyped_storage().nbytes() == 32 * 3 * 2


def test_shards_that_hold_the_whole_storage_load(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path
) -> None:
    for number in range(3):
        part = slice(number * 10, number * 10 + 10)
        write_shard(tmp_path / "shards", number, rows[part], vectors[:, part])  # a view: its file has all 30
    assert load(tmp_path / "shards", 1)[1].untyped_storage().nbytes() == 32 * 30 * 2
    _, embeddings = take(tmp_path / "shards", model, tmp_path)
    tables = open_artifact(embeddings, "embeddings").tables()
    matrix = torch.cat([torch.from_numpy(read_vectors(place)[1].copy()) for place, _ in tables])
    assert torch.equal(matrix, vectors.T)


def test_vectors_of_another_model_are_refused(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path
) -> None:
    """A fingerprint cannot be checked against foreign vectors, so passages are encoded again and compared."""
    source = write_index(tmp_path / "shards", rows, vectors.roll(1, dims=0), [15, 15])
    with pytest.raises(
        ArtifactError, match="did not make these vectors: 30 passages encoded again have a median cosin"
    ):
        take(source, model, tmp_path)
    assert not (tmp_path / "embeddings").exists()
    take(source, model, tmp_path, num_checked=0)


def test_vectors_in_another_order_are_refused(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path
) -> None:
    """Row 7: text of one corpus beside vectors of another."""
    spread = (vectors.float() - vectors.float().mean(1, keepdim=True)).half()
    source = write_index(tmp_path / "shards", rows, spread.roll(3, dims=1), [15, 15])
    with pytest.raises(ArtifactError, match="did not make these vectors"):
        take(source, model, tmp_path, num_checked=20)


def spoil(kind: str, folder: Path) -> None:
    passages, vector_DN = load(folder, 1)
    if kind == "passages gone":
        (folder / "passages.1.pt").unlink()
    elif kind == "embeddings gone":
        (folder / "embeddings.1.pt").unlink()
    elif kind == "a vector less":
        write_shard(folder, 1, passages, vector_DN[:, :-1].clone())
    elif kind == "transposed":
        write_shard(folder, 1, passages, vector_DN.T.clone())
    elif kind == "not finite":
        vector_DN[3, 7] = float("inf")
        write_shard(folder, 1, passages, vector_DN)
    elif kind == "fp32":
        write_shard(folder, 1, passages, vector_DN.float())
    elif kind == "no tensor":
        torch.save({"vectors": [1, 2]}, folder / "embeddings.1.pt")
    elif kind == "no list":
        write_shard(folder, 1, {"a": 1}, vector_DN)  # type: ignore[arg-type]
    elif kind == "no dict":
        write_shard(folder, 1, [*passages[:3], None, *passages[4:]], vector_DN)  # type: ignore[list-item]
    elif kind == "no id":
        write_shard(folder, 1, [*passages[:3], {"text": "x"}, *passages[4:]], vector_DN)
    elif kind == "half a character":
        write_shard(folder, 1, [{**passages[0], "text": "\ud83d"}, *passages[1:]], vector_DN)
    elif kind == "code in passages":
        write_shard(folder, 1, [*passages[:9], {"id": "1", "text": Call()}], vector_DN)
    elif kind == "code in embeddings":
        torch.save([vector_DN, Call()], folder / "embeddings.1.pt")
    else:
        for path in folder.iterdir():
            path.unlink()


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch intruded",)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("passages gone", r"passages.1.pt: missing; there are shards up to 2"),
        ("embeddings gone", r"embeddings.1.pt: missing; there are shards up to 2"),
        ("a vector less", r"embeddings.1.pt: 9 vectors, but 10 passages in the shard"),
        ("transposed", r"embeddings.1.pt: a tensor of shape \[10, 32\]; expected \(32, passages\)"),
        ("not finite", r"embeddings.1.pt: vector 7 holds values that are not finite"),
        ("fp32", r"embeddings.1.pt: expected a tensor of float16, found torch.float32"),
        ("no tensor", r"embeddings.1.pt: expected a tensor of float16, found dict"),
        ("no list", r"passages.1.pt: expected a list of passages, found dict"),
        ("no dict", r"passages.1.pt passage 3: expected a dict, found NoneType"),
        ("no id", r"passages.1.pt passage 3: field 'id': expected text, found nothing"),
        ("half a character", r"passages.1.pt passage 0: field 'text': holds half a character"),
        ("code in passages", r"passages.1.pt: the pickle asks for posix.system"),
        ("code in embeddings", r"embeddings.1.pt: the file asks for posix.system"),
        ("nothing", r"no shards of an Atlas index"),
    ],
)
def test_damaged_shards(
    rows: list[dict[str, str]],
    vectors: torch.Tensor,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_index(tmp_path / "shards", rows, vectors, [10, 10, 10])
    spoil(kind, source)
    with pytest.raises(ArtifactError, match=message):
        take(source, model, tmp_path)
    assert not (tmp_path / "embeddings").exists()
    assert not (tmp_path / "intruded").exists()


def test_a_truncated_tensor_is_told_with_the_file(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path
) -> None:
    source = write_index(tmp_path / "shards", rows, vectors, [10, 10, 10])
    place = source / "embeddings.1.pt"
    place.write_bytes(place.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=r"embeddings.1.pt: no readable file of torch.save"):
        take(source, model, tmp_path)


def test_more_checked_than_there_are(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, tmp_path: Path
) -> None:
    take(write_index(tmp_path / "shards", rows, vectors, [30]), model, tmp_path, num_checked=10**12)


def test_a_full_disk_in_the_midst_of_an_export() -> None:
    class FullDisk(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        save_torch_file(torch.zeros(4), FullDisk())


def test_export_never_mixes_with_an_older_one(toy_passages: str, toy_index: str, tmp_path: Path) -> None:
    """Row 7: upstream kept the old passages beside the new vectors."""
    output = tmp_path / "out"
    output.mkdir()
    export_index(index=toy_index, passages=toy_passages, output=str(output), num_shards=2)
    with pytest.raises(ArtifactError, match="expected a new or empty folder"):
        export_index(index=toy_index, passages=toy_passages, output=str(output), num_shards=2)
    assert len(find_shards(output)) == 2


def test_export_of_passages_that_are_not_the_index_s(
    rows: list[dict[str, str]], vectors: torch.Tensor, model: str, toy_index: str, tmp_path: Path
) -> None:
    passages, _ = take(write_index(tmp_path / "shards", rows, vectors, [30]), model, tmp_path)
    with pytest.raises(ArtifactError, match="made from passages"):
        export_index(index=toy_index, passages=passages, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"num_checked": -1}, {"min_cosine": 2.0}])
def test_settings_out_of_range(model: str, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: expected"):
        take(tmp_path, model, tmp_path, **options)


def test_no_shards_asked_for(toy_passages: str, toy_index: str, tmp_path: Path) -> None:
    with pytest.raises(RalmError, match="num_shards: expected at least 1"):
        export_index(index=toy_index, passages=toy_passages, output=str(tmp_path / "out"), num_shards=0)


@pytest.mark.parametrize(
    ("title", "section", "bare"),
    [
        ("A: B", "B", "A"),
        ("A: B: B", "B", "A: B"),
        ("A", "", "A"),
        ("A: ", "", "A: "),
        (": B", "B", ""),
        ("B", "B", "B"),
    ],
)
def test_the_title_rule_backwards(title: str, section: str, bare: str) -> None:
    assert bare_title(title, section) == bare


def test_by_key(
    rows: list[dict[str, str]],
    vectors: torch.Tensor,
    model: str,
    site: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_index(tmp_path / "shards", rows, vectors, [1] * 30 + [0] * 98)
    site.files |= {f"/indices/atlas/wiki/base/{path.name}": path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setenv("RALM_ATLAS_BASE_URL", site.url)
    passages, embeddings = str(tmp_path / "passages"), str(tmp_path / "embeddings")
    key = "atlas:indices/atlas/wiki/base"
    made = import_index(source=key, model=model, passages=passages, embeddings=embeddings)
    assert [manifest.counts["passages"] for manifest in made] == [30, 30]
