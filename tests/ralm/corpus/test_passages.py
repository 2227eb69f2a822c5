from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ralm.corpus.passages import (
    INFOBOX,
    Document,
    Piece,
    SplitLimits,
    cut_documents,
    passage_id,
    split_infobox,
    split_text,
)
from ralm.corpus.sentences import count_words, plain_sentences, sentence_ends
from ralm.errors import ConfigError

LIMITS = SplitLimits(100)
TEXTS = st.text(st.sampled_from("aB .!?\n\t,。你ไЖ1'\""), max_size=3000)


def random_sentence(generator: random.Random) -> str:
    words = [
        "".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 9)))
        for _ in range(generator.randint(3, 40))
    ]
    return " ".join(words).capitalize() + "."


def split_sentences(text: str) -> list[str]:
    ends = list(sentence_ends(text))
    return [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. She left! Who? All.", ["He came.", "She left!", "Who?", "All."]),
        ("Dr. J. R. Smith paid 3.5 euros, i.e. all. Then", ["Dr. J. R. Smith paid 3.5 euros, i.e. all.", "Then"]),
        ('He said "Go." Then (he left.) Done', ['He said "Go."', "Then (he left.)", "Done"]),
        ("東京です。大阪です！はい", ["東京です。", "大阪です！", "はい"]),
        ("यह है। वह है॥ अंत", ["यह है।", "वह है॥", "अंत"]),
        ("هل؟ نعم. لا", ["هل؟", "نعم.", "لا"]),
        ("one\ntwo\n\nthree", ["one", "two", "three"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


PLAIN_WORDS = [
    "a",
    "Bc",
    "dé",
    "Éa",
    "Dr",
    "Dr.",
    "U.S.",
    "J.",
    "approx.",
    "longword.",
    "3.5",
    "(x.)",
    "end!",
    "so?",
    "«e.»",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*PLAIN_WORDS, "…", "東京。", "no\u2003break", ""]), st.sampled_from(" \n"))))
def test_plain_text_is_cut_as_any_other(pieces: list[tuple[str, str]]) -> None:
    text = "".join(word + space for word, space in pieces).strip()
    found = plain_sentences(text)
    if found is None:
        assert "  " in text or "\n\n" in text or " \n" in text or "\n " in text or "東" in text or "\u2003" in text
        return
    ends = list(sentence_ends(text))
    assert found == (ends, [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)])


def test_a_plain_text_of_many_sentences_is_recognised() -> None:
    assert plain_sentences("He came at 5 p.m. to Dr. Smith. She left.\nAll did…") is not None


def test_words_are_counted_in_scripts_without_spaces() -> None:
    assert count_words("a b c") == 3
    assert count_words("") == 0
    assert 40 <= count_words("東京都は日本の首都" * 10) <= 50


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.integers(8, 40))
def test_length_limit_holds_and_nothing_is_lost(text: str, target: int) -> None:
    limits = SplitLimits(target)
    parts = split_text(text, limits)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part and count_words(part) <= limits.max_words for part in parts)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9))
def test_an_edit_moves_only_the_passages_around_it(seed: int) -> None:
    generator = random.Random(seed)
    sentences = [random_sentence(generator) for _ in range(150)]
    place = generator.randrange(len(sentences))
    edited = list(sentences)
    edit = generator.choice(["replace", "delete", "insert"])
    if edit == "delete":
        del edited[place]
    elif edit == "insert":
        edited.insert(place, random_sentence(generator))
    else:
        edited[place] = random_sentence(generator)
    before, after = split_text(" ".join(sentences), LIMITS), split_text(" ".join(edited), LIMITS)
    same_start = next(i for i in range(len(before)) if i >= len(after) or before[i] != after[i])
    same_end = next(i for i in range(len(before)) if i >= len(after) or before[-1 - i] != after[-1 - i])
    assert len(before) - same_start - same_end <= 6


def test_edits_change_few_passages_on_average() -> None:
    generator = random.Random(5)
    sentences = [random_sentence(generator) for _ in range(400)]
    before = split_text(" ".join(sentences), LIMITS)
    changed = []
    for place in range(0, 400, 8):
        after = split_text(" ".join([*sentences[:place], random_sentence(generator), *sentences[place + 1 :]]), LIMITS)
        changed.append(len(set(after) - set(before)))
    assert sum(changed) / len(changed) < 2.2
    lengths = [count_words(part) for part in before]
    assert 85 <= sum(lengths) / len(lengths) <= 115


def test_a_short_section_is_one_passage() -> None:
    assert split_text("One. Two.\nThree.", LIMITS) == ["One. Two.\nThree."]


def test_a_long_sentence_is_cut_at_words() -> None:
    parts = split_text("word " * 1000, LIMITS)
    assert max(map(count_words, parts)) <= LIMITS.max_words
    assert min(map(count_words, parts)) >= 50


def test_infobox_is_cut_at_lines() -> None:
    lines = [f"field {number}: value {number}" for number in range(60)]
    parts = split_infobox("\n".join(lines), LIMITS)
    assert "\n".join(parts).split("\n") == lines
    assert max(map(count_words, parts)) <= 100


def test_id_is_the_documented_bytes() -> None:
    message = b"\0\0\0\0\0\0\0\x0212" + b"\0\0\0\0\0\0\0\x01S" + b"\0\0\0\0\0\0\0\x02\xc3\xa4" + b"\0\0\0\0\0\0\0\x03"
    expected = int(hashlib.sha256(message).hexdigest()[:16], 16) >> 1
    assert passage_id("12", "S", "ä", 3) == expected
    assert 0 <= expected < 2**63
    assert passage_id("1", "2", "x", 0) != passage_id("12", "", "x", 0)


def test_rows_of_a_document() -> None:
    pieces = [Piece("", "Same."), Piece("", "Same."), Piece("S", "Same."), Piece("", "a: b", INFOBOX)]
    columns = cut_documents([Document("7", "T", pieces, 7, 9), Document("8", "T", pieces[:1])], LIMITS).columns
    assert len(set(columns["passage_id"])) == 5
    assert columns["position"] == [0, 1, 2, 3, 0]
    assert columns["kind"] == ["text", "text", "text", "infobox", "text"]
    assert columns["page_id"] == [7, 7, 7, 7, None]
    assert columns["content_hash"][0] == columns["content_hash"][1] != columns["content_hash"][2]
    renamed = cut_documents([Document("7", "New title", pieces, 7, 9)], LIMITS).columns
    assert renamed["passage_id"] == columns["passage_id"][:4]


def test_tiny_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="passage_words"):
        SplitLimits(3)
