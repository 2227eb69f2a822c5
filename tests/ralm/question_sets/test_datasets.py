"""Each question set from a web server with excerpts in the official format, and what is done with broken files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ralm.errors import ConfigError, DataError
from ralm.question_sets.catalog import DATASETS
from ralm.question_sets.kilt import TASKS
from ralm.question_sets.splits import divide
from tests.ralm.conftest import Site
from tests.ralm.question_sets.conftest import EXCERPTS, Tables, excerpt_tar, index_tar, tar_of

Prepare = Callable[..., Tables]
Lines = Callable[..., Path]


def serve(site: Site, **contents: bytes | Path) -> dict[str, str]:
    """Put files on the site; their addresses by role."""
    for role, content in contents.items():
        site.files[f"/{role}"] = content if isinstance(content, bytes) else content.read_bytes()
    return {role: f"{site.url}/{role}" for role in contents}


def test_every_question_set_says_who_publishes_it_where_and_under_which_licence() -> None:
    for dataset in DATASETS.values():
        assert dataset.page.startswith("https://")
        assert dataset.licence
        for role, file in dataset.files.items():
            assert file.url.startswith(("https://", "http://dl.fbaipublicfiles.com/KILT/")), role
            assert len(file.sha256) in (0, 64)
    unpinned = {file.name for dataset in DATASETS.values() for file in dataset.files.values() if not file.sha256}
    assert unpinned == {"train.json", "val.json", "test.json", "triviaqa-unfiltered.tar.gz", "dataindex.tar.gz"}
    assert {name.removeprefix("kilt/") for name in DATASETS if name.startswith("kilt/")} == set(TASKS)


def test_nq_open_divided_as_fid_did(prepare: Prepare, site: Site) -> None:
    files = serve(
        site,
        train=EXCERPTS / "nq-open" / "NQ-open.train.jsonl",
        test=EXCERPTS / "nq-open" / "NQ-open.dev.jsonl",
        index=index_tar("NQ", train=[5, 0, 7], dev=[3, 1], test=[2, 0]),
    )
    tables = prepare("dataset:nq-open", files, dev_split="fid")
    ids = {split: [row["question_id"] for row in rows] for split, rows in tables.items()}
    assert ids == {
        "train": ["nq-train-5", "nq-train-0", "nq-train-7"],
        "dev": ["nq-train-3", "nq-train-1"],
        "test": ["nq-dev-2", "nq-dev-0"],
    }
    official = json.loads((EXCERPTS / "nq-open" / "NQ-open.dev.jsonl").read_text().splitlines()[2])
    assert tables["test"][0]["question"] == official["question"]
    assert tables["test"][0]["answers"] == official["answer"]
    assert tables["test"][0]["task"] == "qa"


def test_division_by_hash_holds_out_a_tenth_whatever_the_order() -> None:
    rows = [{"question": f"question {number}"} for number in range(4000)]
    parts = divide(rows, None, "NQ", "hash")
    assert 320 < len(parts["dev"]) < 480
    assert len(parts["train"]) + len(parts["dev"]) == 4000
    shuffled = random.Random(1).sample(rows, len(rows))
    again = divide(shuffled, None, "NQ", "hash")
    assert {row["question"] for row in again["dev"]} == {row["question"] for row in parts["dev"]}


def test_an_index_of_another_file_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    index = tmp_path / "dataindex.tar.gz"
    index.write_bytes(index_tar("NQ", train=[0, 24], dev=[1]))
    files = {"train": EXCERPTS / "nq-open" / "NQ-open.train.jsonl", "index": index}
    with pytest.raises(DataError, match=r"NQ.train.idx.json: expected rows from 0 to 23, found 24"):
        prepare("dataset:nq-open", files, dev_split="fid")
    with pytest.raises(ConfigError, match="dev_split: fid needs FiD's index file"):
        prepare("dataset:nq-open", {"train": files["train"]}, dev_split="fid")
    index.write_bytes(tar_of({"dataindex/NQ.train.idx.json": b'{"a": 1}'}))
    with pytest.raises(DataError, match="expected a JSON list of row numbers"):
        prepare("dataset:nq-open", files, dev_split="fid")


def test_triviaqa_from_its_archive(prepare: Prepare, site: Site) -> None:
    archive = excerpt_tar("triviaqa", "triviaqa-unfiltered/")
    files = serve(site, archive=archive, index=index_tar("TQA", train=[2, 0], dev=[1], test=[0, 1, 2]))
    tables = prepare("dataset:triviaqa", files, dev_split="fid")
    assert [row["question_id"] for row in tables["train"]] == ["tc_406", "tc_0"]
    assert [row["question_id"] for row in tables["dev"]] == ["tc_19"]
    official = json.loads((EXCERPTS / "triviaqa" / "unfiltered-web-dev.json").read_text())["Data"]
    for row, record in zip(tables["test"], official, strict=True):
        assert row["question"] == record["Question"]
        assert row["answers"] == record["Answer"]["Aliases"]
    assert tables["train"][1]["target"] == "Harry Truman"
    by_hash = prepare("dataset:triviaqa", {"archive": files["archive"]}, dev_split="hash")
    assert sum(len(by_hash.get(split, [])) for split in ("train", "dev")) == 3


def test_triviaqa_targets_in_capitals_become_title_case(prepare: Prepare, tmp_path: Path) -> None:
    records = [
        {"QuestionId": str(number), "Question": "q", "Answer": {"Value": value, "Aliases": ["x"]}}
        for number, value in enumerate(["DAVID SEVILLE", "NASA Ames", "1978"])
    ]
    (tmp_path / "t.json").write_text(json.dumps({"Data": records, "Domain": "unfiltered-web"}))
    rows = prepare("dataset:triviaqa", {"test": tmp_path / "t.json"})["test"]
    assert [row["target"] for row in rows] == ["David Seville", "NASA Ames", "1978"]


@pytest.mark.parametrize("read_chars", [1, 7, 100, 1 << 20])
def test_triviaqa_records_are_read_one_by_one(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, read_chars: int
) -> None:
    path = EXCERPTS / "triviaqa" / "unfiltered-web-dev.json"
    monkeypatch.setattr("ralm.question_sets.triviaqa.READ_CHARS", max(read_chars, 20))
    rows = prepare("dataset:triviaqa", {"test": path})["test"]
    assert len(rows) == len(json.loads(path.read_text())["Data"])


def test_templama_keeps_facts_that_changed(prepare: Prepare, site: Site) -> None:
    places = {"train": "train", "dev": "val", "test": "test"}
    for name in places.values():
        site.files[f"/mirror/templama/{name}.json"] = (EXCERPTS / "templama" / f"{name}.json").read_bytes()
    tables = prepare("dataset:templama", {}, base_url=f"{site.url}/mirror/")
    assert set(tables) == {f"{split}-{year}" for split in places for year in ("2017", "2020")}
    asked = {row["question"]: row["answers"] for row in tables["train-2017"]}
    assert asked["Cristiano Ronaldo plays for <extra_id_0>."] == ["Real Madrid CF"]
    assert {row["question"] for row in tables["train-2020"]} == set(asked)
    text = " ".join(asked)
    assert "Neymar" not in text, "an answer of 2020 was right in 2017 as well"
    assert "United States" not in text, "the answer did not change"
    assert "New Zealand" not in text, "asked in one of the two years only"
    assert {row["date"] for row in tables["test-2020"]} == {"2020"}


def test_fever_keeps_unlabelled_claims(prepare: Prepare, site: Site) -> None:
    names = {"train": "train", "dev": "shared_task_dev", "test": "shared_task_test"}
    files = serve(site, **{role: EXCERPTS / "fever" / f"{name}.jsonl" for role, name in names.items()})
    tables = prepare("dataset:fever", files)
    assert {row["label"] for row in tables["train"]} == {"SUPPORTS", "REFUTES", "NOT ENOUGH INFO"}
    assert [row["label"] for row in tables["test"]] == [None, None]
    assert all(row["positive_titles"] for row in tables["dev"] if row["label"] in ("SUPPORTS", "REFUTES"))
    assert all("_" not in title and "-LRB-" not in title for row in tables["dev"] for title in row["positive_titles"])


def csv_line(number: int) -> str:
    return f'"question {number}, with a comma",a,b,c,d,{"ABCD"[number % 4]}\n'


def full_mmlu(num_auxiliary: int) -> bytes:
    files = {"data/auxiliary_train/race.csv": "".join(map(csv_line, range(num_auxiliary))).encode()}
    for part, size in (("dev", 5), ("val", 2), ("test", 3)):
        for subject in ("anatomy", "virology"):
            text = "".join(f"{subject} {part} {number},a,b,c,d,A\n" for number in range(size))
            files[f"data/{part}/{subject}_{part}.csv"] = text.encode()
    return tar_of(files)


def test_mmlu_layouts(prepare: Prepare, site: Site) -> None:
    files = serve(site, archive=full_mmlu(5003))
    sizes = {
        "zero-shot": {"dev": 4, "test": 6},
        "zero-shot/virology": {"dev": 2, "test": 3},
        "5-shot/virology": {"train": 5, "dev": 2, "test": 3},
        "5-shot-multi": {"train": 10, "dev": 4, "test": 6},
        "full": {"train": 3 + 10, "dev-auxiliary": 5000, "dev": 4, "test": 6},
    }
    for layout, expected in sizes.items():
        tables = prepare(f"dataset:mmlu/{layout}", files)
        assert {split: len(rows) for split, rows in tables.items()} == expected, layout
    expected_order = [f"race/auxiliary_train/{number}" for number in range(5003)]
    random.Random(10).shuffle(expected_order)
    found = [row["question_id"] for row in tables["train"][:3] + tables["dev-auxiliary"]]
    assert found == expected_order
    row = tables["train"][0]
    number = int(row["question_id"].rpartition("/")[2])
    assert row["question"] == f"question {number}, with a comma"
    assert (row["options"], row["label"]) == (["a", "b", "c", "d"], "ABCD"[number % 4])
    assert row["answers"] == [row["label"]]
    assert json.loads(tables["test"][5]["metadata"])["subject"] == "virology"


def test_mmlu_excerpt(prepare: Prepare, site: Site) -> None:
    tables = prepare("dataset:mmlu/5-shot/astronomy", serve(site, archive=excerpt_tar("mmlu", "")))
    assert {split: len(rows) for split, rows in tables.items()} == {"train": 5, "dev": 3, "test": 5}


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("", "expected one of mmlu/zero-shot, mmlu/5-shot, mmlu/5-shot-multi, mmlu/full, found ''"),
        ("/3-shot", "found '3-shot'"),
        ("/5-shot", "name the subject"),
        ("/5-shot/botany", "expected one of anatomy, virology, found 'botany'"),
    ],
)
def test_mmlu_layouts_that_are_none(prepare: Prepare, tmp_path: Path, variant: str, message: str) -> None:
    (tmp_path / "data.tar").write_bytes(full_mmlu(1))
    with pytest.raises(ConfigError, match=message):
        prepare(f"dataset:mmlu{variant}", {"archive": tmp_path / "data.tar"})


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"triviaqa"}))
def test_kilt_tasks(prepare: Prepare, site: Site, task: str) -> None:
    stem = TASKS[task]
    endings = {"train": "train", "dev": "dev", "test": "test_without_answers"}
    paths = {split: EXCERPTS / "kilt" / f"{stem}-{ending}-kilt.jsonl" for split, ending in endings.items()}
    paths = {split: path for split, path in paths.items() if split in DATASETS[f"kilt/{task}"].files}
    tables = prepare(f"dataset:kilt/{task}", serve(site, **paths))
    for split, path in paths.items():
        for row, line in zip(tables[split], path.read_text().splitlines(), strict=True):
            official = json.loads(line)
            outputs = official.get("output", [])
            assert row["question_id"] == official["id"]
            assert row["question"] == official["input"]
            assert set(row["answers"]) == {output["answer"] for output in outputs if output.get("answer")}
            assert row["task"] == "kilt"
            metadata = json.loads(row["metadata"])
            assert metadata["dataset"] == f"kilt/{task}"
            provenance = [page for output in outputs for page in output.get("provenance", [])]
            assert metadata.get("provenance", []) == provenance
            assert set(row["positive_titles"]) == {page["title"] for page in provenance}
    assert all(row["answers"] == [] for row in tables["test"])
    assert all(row["answers"] for row in tables["dev"])


def test_kilt_triviaqa_takes_its_questions_from_triviaqa(prepare: Prepare, site: Site, lines: Lines) -> None:
    train = lines("train.jsonl", {"id": "tc_0", "output": [{"answer": "Harry Truman"}]}, {"id": "tc_7"})
    files = serve(site, train=train, questions=excerpt_tar("triviaqa", "triviaqa-unfiltered/"))
    rows = prepare("dataset:kilt/triviaqa", files)["train"]
    assert rows[0]["question"] == "Who was President when the first Peanuts cartoon was published?"
    assert rows[1]["question"] == "Asmara international airport is in which country?"
    assert rows[1]["answers"] == []


def test_kilt_triviaqa_without_its_questions(prepare: Prepare, tmp_path: Path, lines: Lines) -> None:
    path = EXCERPTS / "kilt" / "triviaqa-dev_id-kilt.jsonl"
    with pytest.raises(DataError, match=r"line 1: field 'input': expected text, found nothing: .* files.questions"):
        prepare("dataset:kilt/triviaqa", {"dev": path})
    archive = tmp_path / "t.tar"
    archive.write_bytes(excerpt_tar("triviaqa", ""))
    with pytest.raises(DataError, match="TriviaQA questions have no id 'nobody'"):
        prepare("dataset:kilt/triviaqa", {"dev": lines("x.jsonl", {"id": "nobody"}), "questions": archive})


def test_an_official_file_with_other_content_is_refused(prepare: Prepare, site: Site) -> None:
    for name in ("train", "shared_task_dev", "shared_task_test"):
        site.files[f"/fever/{name}.jsonl"] = (EXCERPTS / "fever" / f"{name}.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"fever/train.jsonl: expected sha256 eba7e8f8.*, found"):
        prepare("dataset:fever", {}, base_url=site.url)


def test_without_the_index_file_the_other_division_is_named(prepare: Prepare, site: Site) -> None:
    site.files["/triviaqa/triviaqa-unfiltered.tar.gz"] = excerpt_tar("triviaqa", "triviaqa-unfiltered/")
    with pytest.raises(DataError, match=r"dataindex.tar.gz: the server answered 404 .*; with dev_split hash"):
        prepare("dataset:triviaqa", {}, base_url=site.url, dev_split="fid")
    tables = prepare("dataset:triviaqa", {}, base_url=site.url, dev_split="hash")
    assert len(tables["test"]) == 3


def test_a_broken_download_goes_on_where_it_broke(prepare: Prepare, site: Site) -> None:
    files = serve(site, test=EXCERPTS / "nq-open" / "NQ-open.dev.jsonl")
    site.drop_after = [100, 50]
    assert len(prepare("dataset:nq-open", files)["test"]) == 8
    assert site.gets == ["", "bytes=100-", "bytes=150-"]


def test_ids_that_come_twice_are_told_apart(prepare: Prepare, lines: Lines) -> None:
    claim = {"id": 1, "claim": "c", "label": "REFUTES", "evidence": []}
    rows = prepare("dataset:fever", {"train": lines("t.jsonl", claim, claim, {**claim, "id": 2}, claim)})["train"]
    assert [row["question_id"] for row in rows] == ["1", "1#2", "2", "1#3"]


NQ, FEVER, KILT, TEMPLAMA = "dataset:nq-open", "dataset:fever", "dataset:kilt/nq", "dataset:templama"
LAMA: dict[str, Any] = {"query": "_X_ is", "answer": [{"name": "a"}], "date": "2017", "id": "1"}


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (NQ, {"answer": ["a"]}, "field 'question': expected text, found nothing"),
        (NQ, {"question": "q", "answer": "a"}, "field 'answer': expected a list, found str"),
        (NQ, {"question": "q", "answer": [1]}, "field 'answer': expected a list of text, found int in it"),
        (NQ, {"question": "q", "answer": []}, "field 'answer': expected at least one text, found an empty list"),
        (NQ, '["question"]', "expected a JSON object, found list"),
        (NQ, "{", "no JSON"),
        (FEVER, {"id": 1, "label": "SUPPORTS"}, "field 'claim': expected text, found nothing"),
        (FEVER, {"id": 1, "claim": "c", "label": "TRUE"}, "field 'label': expected one of SUPPORTS, .*, found 'TRUE'"),
        (FEVER, {"id": 1, "claim": "c", "label": "SUPPORTS", "evidence": [[1]]}, "field 'evidence': expected lists"),
        (FEVER, {"id": 1.5, "claim": "c"}, "field 'id': expected text, found float"),
        (KILT, {"id": "1"}, "field 'input': expected text, found nothing"),
        (KILT, {"id": "1", "input": "q", "output": {}}, "field 'output': expected a list, found dict"),
        (KILT, {"id": "1", "input": "q", "output": [{"answer": 1.5}]}, "output: field 'answer': expected text, found"),
        (KILT, {"id": "1", "input": "q", "meta": []}, "field 'meta': expected an object, found list"),
        (TEMPLAMA, {**LAMA, "query": "He is"}, "field 'query': expected a text with _X_, found 'He is'"),
        (TEMPLAMA, {**LAMA, "answer": []}, "field 'answer': expected at least one name"),
        (TEMPLAMA, {**LAMA, "answer": [{}]}, "answer: field 'name': expected text, found nothing"),
        (TEMPLAMA, {**LAMA, "date": None}, "field 'date': expected text, found nothing"),
    ],
)
def test_bad_lines_name_file_line_and_field(
    prepare: Prepare, lines: Lines, source: str, row: object, message: str
) -> None:
    with pytest.raises(DataError, match=rf"bad\.jsonl line 1: {message}"):
        prepare(source, {"train": lines("bad.jsonl", row)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Data": [{"QuestionId": "1", "Question": "q"}]}', "record 1: field 'Answer.Value': expected text, found no"),
        ('{"Data": [3]}', "record 1: expected an object, found int"),
        ('{"Data": [{"QuestionId": "1"', "record 1: the file ends too early"),
        ('{"Other": []}', "field 'Data': expected a list, found none"),
        ("", "field 'Data': expected a list, found none"),
    ],
)
def test_bad_triviaqa_files(prepare: Prepare, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=rf"bad\.json:? {message}"):
        prepare("dataset:triviaqa", {"test": tmp_path / "bad.json"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a,b,c,A\n", r"x_dev\.csv line 1: expected 6 fields \(question, A, B, C, D, answer\), found 5"),
        ("q,a,b,c,d,A\nq,a,b,c,d,E\n", r"x_dev\.csv line 2: field 'answer': expected A, B, C or D, found 'E'"),
        ("q,a,b,c,d,AB\n", "found 'AB'"),
    ],
)
def test_bad_mmlu_tables(prepare: Prepare, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.tar").write_bytes(tar_of({"data/dev/x_dev.csv": text.encode()}))
    with pytest.raises(DataError, match=message):
        prepare("dataset:mmlu/zero-shot", {"archive": tmp_path / "bad.tar"})


def test_names_and_roles_that_are_unknown(prepare: Prepare) -> None:
    with pytest.raises(ConfigError, match="dataset:squad: unknown question set; there are dataset:nq-open, "):
        prepare("dataset:squad", {})
    with pytest.raises(ConfigError, match="files: fever has dev, test, train, found 'valid'"):
        prepare("dataset:fever", {"valid": "x"})


@pytest.mark.parametrize(
    ("source", "role", "place", "expected"),
    [
        ("dataset:nq-open", "test", "nq_open/NQ-open.dev.jsonl", {"test": 3610}),
        ("dataset:fever", "dev", "fever/paper_dev.jsonl.gz", {"dev": 9999}),
        ("dataset:mmlu/5-shot-multi", "archive", "mmlu/mmlu.tar.gz", {"train": 285, "dev": 1542, "test": 7675}),
    ],
)
def test_whole_files(
    prepare: Prepare, shared_data: Path, source: str, role: str, place: str, expected: dict[str, int]
) -> None:
    tables = prepare(source, {role: shared_data / "qa" / place})
    assert {split: len(rows) for split, rows in tables.items()} == expected
    assert all(row["question"].strip() for rows in tables.values() for row in rows)
