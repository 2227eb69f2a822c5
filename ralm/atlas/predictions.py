"""Predictions -> Atlas' results file: one JSON object a line, in the order of the questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ralm.artifacts.files import Location, atomic_file, local_path
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import iterate_rows
from ralm.corpus.lookup import Passage, PassageLookup
from ralm.errors import ArtifactError
from ralm.reader.prompts import full_title


def export_predictions(*, predictions: Location, output: Location, passages: Location = "") -> Path:
    """Write predictions as Atlas' evaluation scripts read them.

    The fields are `id`, `query`, `answers`, `generation` (not where there was only retrieval), `passages` with their
    scores, `metadata`, and for multiple choice `choice_logits` (of the options as given), `choice_probs` (over all
    orders) and `permutations`. `query` is the question of the task, without the model's own format around it.

    Args:
        predictions: a `predictions` artifact.
        output: the file, such as `results.jsonl`.
        passages: the `passages` artifact that was searched; without it passages are left out.

    Returns:
        The file.

    Raises:
        ArtifactError: a passage is not in the artifact, or the output is a folder.
    """
    path = local_path(output)
    if path.is_dir():
        raise ArtifactError(f"{output}: expected a file such as results.jsonl, found a folder")
    tables = open_artifact(predictions, "predictions").tables()
    lookup = PassageLookup(passages) if passages else None
    with atomic_file(path) as file:
        for table in iterate_rows([place for place in tables if place[1]], "predictions/1"):
            for row in table.to_pylist():
                found = lookup.get(row["passage_ids"]) if lookup else None
                file.write(json.dumps(official_result(row, found), ensure_ascii=False).encode() + b"\n")
    return path


def official_result(row: Mapping[str, Any], passages: Sequence[Passage] | None) -> dict[str, Any]:
    """One line of a results file.

    Args:
        row: of `predictions/1`.
        passages: of this question, best first; None leaves them out.
    """
    metadata = json.loads(row["metadata"])
    result: dict[str, Any] = {
        "id": row["question_id"],
        "query": metadata.pop("query", metadata.get("question", "")),
        "answers": row["answers"],
    }
    if row["candidates"]:
        result["generation"] = row["prediction"]
    if passages is not None:
        scores = row["scores"] or [None] * len(passages)
        result["passages"] = [_passage(*pair) for pair in zip(passages, scores, strict=True)]
    if orders := metadata.pop("permutations", None):
        orders = [{**order, "choice_logits": _by_letter(order["choice_logits"])} for order in orders]
        result |= {"choice_logits": orders[0]["choice_logits"], "permutations": orders}
    if row["choice_probabilities"] is not None:
        result["choice_probs"] = _by_letter(row["choice_probabilities"])
    return {**result, "metadata": metadata}


def _passage(passage: Passage, score: float | None) -> dict[str, Any]:
    return {
        "id": passage.source_id,
        "title": full_title(passage.title, passage.section),
        "section": passage.section,
        "text": passage.text,
        **({} if score is None else {"score": score}),
    }


def _by_letter(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(ascii_uppercase, values, strict=False))
