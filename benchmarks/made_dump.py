"""A MediaWiki export of made articles, of any size, and questions: for runs where what they say does not matter."""

from __future__ import annotations

import bz2
import json
import random
from pathlib import Path

from benchmarks.gpu.passages import WORDS

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/" version="0.3" xml:lang="en">\n'
SENTENCES = 25
"""Of an article; its words make two to three passages."""
WORDS_OF_SENTENCE = 9


def write_made_dump(path: Path, articles: int, changed_every: int = 0) -> Path:
    """Write a compressed dump of so many articles; equal calls write equal bytes, and a shorter dump begins alike.

    Args:
        path: a `.xml.bz2`.
        articles: how many.
        changed_every: each so-and-so-many-th has a new revision with another first sentence; 0: none.
    """
    with bz2.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.write(HEAD)
        for number in range(articles):
            file.write(_page(number, is_changed=changed_every > 0 and number % changed_every == 0))
        file.write("</mediawiki>\n")
    return path


def write_made_questions(folder: Path, articles: int, number: int) -> None:
    """Write train, dev and test.jsonl: questions about the first articles."""
    folder.mkdir()
    for split in ("train", "dev", "test"):
        generator = random.Random(split)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(number):
                town = f"Town {generator.randrange(articles)}"
                question = f"{' '.join(generator.choices(WORDS, k=6))} {town}"
                asked = {"question_id": f"{split}-{row}", "question": question, "answers": [generator.choice(WORDS)]}
                file.write(json.dumps({**asked, "positive_titles": [town]}) + "\n")


def _page(number: int, *, is_changed: bool = False) -> str:
    generator = random.Random(number)
    words = generator.choices(WORDS, k=SENTENCES * WORDS_OF_SENTENCE)
    starts = range(0, len(words), WORDS_OF_SENTENCE)
    sentences = [f"{' '.join(words[at : at + WORDS_OF_SENTENCE])} {number}.".capitalize() for at in starts]
    if is_changed:
        sentences[0] = f"Another {sentences[0]}"
    identity = f"<id>{number + 900_000 + 10**8 * is_changed}</id>"
    revision = f"<revision>\n{identity}<text>{' '.join(sentences)}</text></revision>"
    return f"<page><title>Town {number}</title><id>{number + 1}</id>{revision}</page>\n"
