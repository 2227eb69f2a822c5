"""Real questions with gold paragraphs -> a corpus and three question files that `ralm download` reads.

Sources, both public and fetched by the user:

- QED (google-research-datasets/QED on GitHub, `qed-dev.jsonlines`; Kim et al. 2020; CC BY-SA 3.0): questions of Natural
  Questions with the Wikipedia paragraph that answers them. The first 1,000 lines are used.
- Passages that a retriever found for biographies (HuskyInSalt/CRAG on GitHub, `data/bio/retrieved_psgs`; text of
  Wikipedia, CC BY-SA): about 100 words each. The first 10 of the first 500 lines are used.

`QED_SHA256` and `PASSAGES_SHA256` are checksums of what was read of them, whatever file it came in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralm.artifacts.files import encode_json
from ralm.corpus.compressed import read_lines
from ralm.corpus.passages import passage_id
from ralm.corpus.records import read_json_lines
from ralm.errors import DataError

logger = logging.getLogger(__name__)
QED_SHA256 = "a99509d6259895bf21674c39e172664dea062a1180792e63f581f3983822759c"
PASSAGES_SHA256 = "1f83160bb9af8f30f605264b4551b755aaa0243e772eda10aa7e5f40a01ded6f"
NUM_QUESTIONS, NUM_LINES, PASSAGES_IN_LINE = 1_000, 500, 10
SPLIT_SIZES = {"test": 200, "dev": 100}
SPLIT_SEED = 0


@dataclass(frozen=True)
class Paragraph:
    """A passage of the corpus."""

    source_id: str
    title: str
    text: str

    @property
    def passage_id(self) -> int:
        """The id that `ralm download` gives it."""
        return passage_id(self.source_id, "", self.text, 0)


@dataclass(frozen=True)
class GoldQuestion:
    """A question, what counts as right, and the paragraph that says so."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    """The shortest first: it is what the reader learns."""
    gold: Paragraph


def find_source(data: Path, pattern: str) -> Path:
    """The one file below a folder whose name fits.

    Raises:
        DataError: none or several.
    """
    found = sorted(path for path in data.rglob(pattern) if path.is_file())
    if len(found) != 1:
        raise DataError(f"{data}: expected one file {pattern}, found {[path.name for path in found] or 'none'}")
    return found[0]


def read_qed(path: Path, num_questions: int = NUM_QUESTIONS) -> list[GoldQuestion]:
    """Questions of QED; equal paragraphs become one.

    Raises:
        DataError: a line is no record of QED.
    """
    questions: list[GoldQuestion] = []
    paragraphs: dict[str, Paragraph] = {}
    for number, row in read_json_lines(path):
        if len(questions) == num_questions:
            break
        try:
            text = row["paragraph_text"].strip()
            strings = {span["string"].strip() for spans in row["original_nq_answers"] for span in spans}
            gold = paragraphs.setdefault(text, Paragraph(f"qed-{len(paragraphs)}", row["title_text"], text))
            answers = sorted(strings - {""}, key=lambda answer: (len(answer), answer))
            questions.append(GoldQuestion(str(row["example_id"]), row["question_text"], tuple(answers), gold))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} line {number}: expected a record of QED: {error!r}") from error
    return questions


def read_other_passages(path: Path, num_lines: int = NUM_LINES) -> list[Paragraph]:
    """Distinct passages of CRAG's file (`title // text [sep] ...`), or of `{"ctxs": [{"title", "text"}]}` lines.

    Raises:
        DataError: a line is neither.
    """
    passages: dict[str, Paragraph] = {}
    for number, line in read_lines(path):
        if number > num_lines:
            break
        for title, text in list(_pairs(line, f"{path} line {number}"))[:PASSAGES_IN_LINE]:
            passages.setdefault(text, Paragraph(f"other-{len(passages)}", title, text))
    return list(passages.values())


def _pairs(line: str, place: str) -> Iterator[tuple[str, str]]:
    try:
        if line.startswith("{"):
            yield from ((item["title"].strip(), item["text"].strip()) for item in json.loads(line)["ctxs"])
            return
        for part in line.split("[sep]"):
            title, text = part.split(" // ", 1)
            yield title.strip(), text.strip()
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: expected passages with title and text: {error!r}") from error


def split_questions(
    questions: Sequence[GoldQuestion], sizes: dict[str, int] = SPLIT_SIZES, seed: int = SPLIT_SEED
) -> dict[str, list[GoldQuestion]]:
    """Questions by split, the rest being `train`; those of one paragraph stay together."""
    of_paragraph: dict[str, list[GoldQuestion]] = {}
    for question in questions:
        of_paragraph.setdefault(question.gold.source_id, []).append(question)
    groups = list(of_paragraph.values())
    random.Random(seed).shuffle(groups)
    splits: dict[str, list[GoldQuestion]] = {name: [] for name in (*sizes, "train")}
    for group in groups:
        name = next((name for name, size in sizes.items() if len(splits[name]) + len(group) <= size), "train")
        splits[name] += group
    return splits


def digest(rows: Sequence[Any]) -> str:
    """Hex sha256 of rows as JSON."""
    return hashlib.sha256(encode_json(list(rows))).hexdigest()


def write_data(data: Path, folder: Path, *, max_passages: int) -> None:
    """Write `corpus.jsonl` (Atlas' format, one paragraph a passage) and `questions/{train,dev,test}.jsonl`.

    Args:
        data: holds `qed-dev*` and `*psgs*` or `*passages*`, wherever below.
        folder: where the files go.
        max_passages: size of the corpus: all gold paragraphs first, then the other passages.

    Raises:
        DataError: a file is missing or not as expected.
    """
    questions = read_qed(find_source(data, "qed-dev*"))
    others = read_other_passages(find_source(data, "*pass*.jsonl*" if list(data.rglob("*pass*.jsonl*")) else "*psgs*"))
    plain = [[item.question, item.answers, item.gold.title, item.gold.text] for item in questions]
    _check("questions of QED", digest(plain), QED_SHA256)
    _check("other passages", digest([[item.title, item.text] for item in others]), PASSAGES_SHA256)
    gold = {question.gold.source_id: question.gold for question in questions}
    corpus = [*gold.values(), *others][:max_passages]
    _write_lines(
        folder / "corpus.jsonl",
        ({"id": item.source_id, "title": item.title, "section": "", "text": item.text} for item in corpus),
    )
    for split, rows in split_questions(questions).items():
        _write_lines(folder / "questions" / f"{split}.jsonl", map(question_row, rows))


def question_row(item: GoldQuestion) -> dict[str, Any]:
    """A line of a question file; ids are text, since JSON numbers lose bits."""
    return {
        "id": item.question_id,
        "question": item.question,
        "answers": list(item.answers),
        "positive_ids": [str(item.gold.passage_id)],
        "positive_titles": [item.gold.title],
    }


def _check(name: str, found: str, expected: str) -> None:
    if found == expected:
        logger.info("%s: sha256 %s as expected", name, found[:12])
    else:
        logger.warning("%s: sha256 %s, expected %s: figures will differ", name, found, expected)


def _write_lines(path: Path, rows: Iterator[dict[str, Any]] | map[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
