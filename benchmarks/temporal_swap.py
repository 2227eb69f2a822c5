"""Same weights, another index: are questions answered as of 2006 or as of 2016?

Usage: python -m benchmarks.temporal_swap --old DUMP --model DIR --work DIR [--new DUMP]

40 questions (`data/temporal_questions.jsonl`) whose answer differs between the same articles of two dumps of the
English Wikipedia. `--old` is the dump of 2006-03-03, pages 1 to 700 (the beginning of enwik8); `--new` the slice of
2016-05 that the quickstart fetches. `--model` has never seen either; `benchmarks.few_shot reader` leaves one in
`WORK/corpus-10000/reader-0`. Every answer is first looked up in its own dump.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.download.config import DownloadConfig
from components.download.stage import download
from components.embed.stage import embed
from components.evaluate.config import EvaluateConfig
from components.evaluate.stage import evaluate
from components.index.stage import index
from ralm.corpus.records import read_json_lines
from ralm.errors import DataError
from ralm.evaluation.metrics import exact_match
from ralm.evaluation.normalise import AnswerFinder
from ralm.log import set_up_logging

QUESTIONS = Path(__file__).parent / "data" / "temporal_questions.jsonl"
YEARS = ("2006", "2016")
Row = Mapping[str, Any]


def find_problems(rows: Sequence[Row], texts: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """What is wrong with the questions, given the passages of each year by title.

    A year's evidence has to be in a passage of the article of that year, hold an answer of that year, and none of the
    other year.
    """
    problems = []
    for row in rows:
        for year, other in (YEARS, YEARS[::-1]):
            evidence = row[f"evidence_{year}"]
            passages = [text for title in row["titles"] for text in texts[year].get(title, [])]
            checks = {
                "evidence not found": any(evidence in text for text in passages),
                "no answer in the evidence": AnswerFinder(row[f"answers_{year}"]).is_in(evidence),
                "the other year's answer in it": not AnswerFinder(row[f"answers_{other}"]).is_in(evidence),
            }
            problems += [f"{row['question']} {year}: {name}" for name, is_fine in checks.items() if not is_fine]
    return problems


def build_index(source: str, folder: Path, model: str) -> dict[str, str]:
    """Passages and index of a dump."""
    places = {name: str(folder / name) for name in ("passages", "embeddings", "index")}
    download(source=source, passages=places["passages"], config=DownloadConfig())
    embed(passages=places["passages"], model=model, embeddings=places["embeddings"])
    index(embeddings=places["embeddings"], index=places["index"])
    return {name: places[name] for name in ("passages", "index")}


def passages_by_title(passages: str) -> dict[str, list[str]]:
    """Texts of all passages of each article."""
    found: dict[str, list[str]] = {}
    for part in sorted(Path(passages).glob("part-*.parquet")):
        for row in pq.read_table(part, columns=["title", "text"]).to_pylist():
            found.setdefault(row["title"], []).append(row["text"])
    return found


def predict(corpus: Mapping[str, str], questions: str, model: str, place: str) -> list[str]:
    """The model's answers with this corpus, in the order of the questions."""
    config = EvaluateConfig(recall_at=(1,))
    evaluate(**corpus, questions=questions, model=model, predictions=place, config=config)
    rows = pq.read_table(f"{place}/test.parquet", columns=["question_id", "prediction"]).to_pylist()
    return [row["prediction"] for row in sorted(rows, key=lambda row: int(row["question_id"]))]


def accuracy(predictions: Sequence[str], rows: Sequence[Row], year: str) -> tuple[float, float]:
    """Share of predictions that equal an answer of a year, and of those that hold one."""
    answers = [row[f"answers_{year}"] for row in rows]
    pairs = list(zip(predictions, answers, strict=True))
    equal = sum(exact_match(prediction, right) for prediction, right in pairs)
    holding = sum(AnswerFinder(right).is_in(prediction) for prediction, right in pairs)
    return equal / len(rows), holding / len(rows)


def write_question_file(rows: Sequence[Row], path: Path) -> None:
    """Questions for `ralm download`; answers of both years count there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": str(number), "question": row["question"], "answers": row["answers_2006"] + row["answers_2016"]}
        for number, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def compare(old: str, new: str, model: str, work: Path) -> str:
    """The table: accuracy for the answers of both years with both indices.

    Raises:
        DataError: a question does not fit the dumps.
    """
    rows = [row for _, row in read_json_lines(QUESTIONS)]
    corpora = {year: build_index(source, work / year, model) for year, source in zip(YEARS, (old, new), strict=True)}
    problems = find_problems(rows, {year: passages_by_title(corpora[year]["passages"]) for year in YEARS})
    if problems:
        raise DataError("; ".join(problems))
    write_question_file(rows, work / "questions.jsonl")
    download(source=str(work / "questions.jsonl"), questions=str(work / "questions"))
    lines = ["| index | answers of 2006: equal, held | answers of 2016: equal, held |", "|---|---|---|"]
    for year in YEARS:
        predictions = predict(corpora[year], str(work / "questions"), model, str(work / f"predictions-{year}"))
        cells = ["{:.3f}, {:.3f}".format(*accuracy(predictions, rows, answer_year)) for answer_year in YEARS]
        lines.append(f"| {year} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.temporal_swap")
    parser.add_argument("--old", required=True, help="dump of 2006-03-03")
    parser.add_argument("--new", default="asset:enwiki-2016-slice", help="dump of 2016-05")
    parser.add_argument("--model", required=True, help="a trained model artifact")
    parser.add_argument("--work", type=Path, required=True, help="folder for passages, indices and predictions")
    given = parser.parse_args()
    set_up_logging()
    print(compare(given.old, given.new, given.model, given.work), flush=True)


if __name__ == "__main__":
    main()
