"""A pair without a model: answers at once, and notes what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ralm.answer import Answer, FoundPassage
from ralm.corpus.lookup import Passage
from ralm.service.pair import ServedPair, Target


class Echo:
    """Answers `answer to QUESTION` from passages that say so.

    Args:
        name: of its passages.
        fails_at: raises if this is in a question.
    """

    num_passages = 3

    def __init__(self, name: str = "Otter", fails_at: str = "\0") -> None:
        self.name, self.fails_at = name, fails_at
        self.batches: list[list[str]] = []
        self.ks: list[int] = []
        self.threads: set[int] = set()

    def search(self, questions: Sequence[str], *, k: int) -> list[list[FoundPassage]]:
        return [[FoundPassage(_passage(number, self.name), 1.0 / number) for number in range(1, k + 1)]] * len(
            questions
        )

    def read(self, questions: Sequence[str], found: Sequence[Sequence[FoundPassage]]) -> list[Answer]:
        if any(self.fails_at in question for question in questions):
            raise RuntimeError(f"cannot read {self.fails_at}, token=secret")
        self.batches.append(list(questions))
        self.ks.append(len(found[0]))
        self.threads.add(threading.get_ident())
        rows = zip(questions, found, strict=True)
        return [Answer(question, f"answer to {question}", -0.5, tuple(hits)) for question, hits in rows]


def _passage(number: int, name: str) -> Passage:
    return Passage(number, "1", 1, None, name, "Use", f"Passage {number} on {name}.", "text", number)


def served(answerer: Any, version: str = "1") -> ServedPair:
    """A pair that is in service."""
    source = "models:/ralm-toy@champion"
    target = Target(model="m", index="i", passages="p", source=source, recipe="toy", version=version, model_id="m-1")
    prints = {"model": "a" * 64, "index": version * 64, "passages": "c" * 64}
    return ServedPair(target=target, answerer=answerer, fingerprints=prints)
