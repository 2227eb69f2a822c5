"""Sentence ends by Unicode rules, and words counted in scripts with and without spaces."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ralm.corpus.tags import name_set

_SPACED_ENDS = ".!?…‽"
_OTHER_ENDS = "。！？｡．।॥۔؟።፧።၊။៕᠃᠉⸮܀܁܂՜՞։߹꓿꘎꘏꛳꛷"
_END = re.compile(  # begins with one character class, so that the engine skips to it at full speed
    rf"[\n{_SPACED_ENDS}{_OTHER_ENDS}]"
    r"(?:(?<=[.!?…‽])[.!?…\"'”’»)\]]*(?=\s)|(?<=\n)\n*|(?<=[^\n.!?…‽])[。！？」』”’）】》\"'»)\]]*)"
)
_ABBREVIATIONS = name_set(
    "mr mrs ms dr prof rev hon st sr jr gen col maj capt lt sgt gov sen rep pres fr vs ca cf e.g i.e al ed eds vol no "
    "nr fig pp p op cit approx dept est inc ltd co corp bros jan feb mar apr jun jul aug sept oct nov dec mt ft ave "
    "blvd c fl b d r lit trans var subsp ssp sp spp hr frau bzw z.b d.h u.a usw bd str tel mme mlle m av p.ex sra srta "
    "ud dña д г гг др им св т.е т.д т.п"
)
_OPENERS = "([\"'“‘«\n"
_INITIAL = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_UNSPACED_RANGES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: written without spaces between words."""
_UNSPACED = re.compile(f"[{_UNSPACED_RANGES}]")
_OTHER_SPACES = "\t\r\v\f\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_FOREIGN = _OTHER_ENDS + _UNSPACED_RANGES + _OTHER_SPACES
"""What is in no plain text (see `plain_sentences`)."""
_PLAIN_END = re.compile(  # most small letters that follow are seen here
    rf"([\n{_SPACED_ENDS}{_FOREIGN}](?:(?<=[\n{_FOREIGN}])|[.!?…\"'”’»)\]]*+(?=\s(?![a-zß-öø-ÿ]))))"
)
_PLAIN_SIGNS = "\n" + _SPACED_ENDS
_SURE_LETTERS = 6
"""A word with so many letters at its end is no initial, and no abbreviation but this long one."""
_LONG_ABBREVIATIONS = [word for word in _ABBREVIATIONS if len(word) >= _SURE_LETTERS]
CHARACTERS_PER_WORD = 2
"""Rule of thumb for those scripts."""


def sentence_ends(text: str) -> Iterator[int]:
    """Offsets just after each sentence, the end of the text included. A line end is always one.

    A full stop ends no sentence after an abbreviation or an initial, inside a number, or before a small letter.

    >>> text = "J. R. R. Tolkien paid 3.50 to Dr. Smith, i.e. all. Then he left."
    >>> [text[:end] for end in sentence_ends(text)][0]
    'J. R. R. Tolkien paid 3.50 to Dr. Smith, i.e. all.'
    """
    last = 0
    for match in _END.finditer(text):
        sign = match[0][0]
        if sign == ".":
            if not _stop_ends(text, match.start(), match.end()):
                continue
        elif sign in _SPACED_ENDS and not _starts_sentence(text, match.end()):
            continue
        if text[last : match.end()].strip():
            last = match.end()
            yield last
    if text[last:].strip():
        yield len(text)


def plain_sentences(text: str) -> tuple[list[int], list[str]] | None:
    r"""What `sentence_ends` finds in a plain text, in less time; each end with its sentence, white space stripped.

    Returns:
        None for any other text. In a plain one, single spaces or line ends separate words, and there is no white space
        around it, and no script with full stops of its own.

    >>> plain_sentences("J. Smith paid 3.50. Then he left.\nEnd"), plain_sentences("One.  Two")
    (([19, 33, 37], ['J. Smith paid 3.50.', 'Then he left.', 'End']), None)
    """
    if "  " in text:
        return None
    pieces = _PLAIN_END.split(text)
    signs = pieces[1::2]
    if any(sign[0] not in _PLAIN_SIGNS for sign in set(signs)):
        return None
    ends: list[int] = []
    sentences: list[str] = []
    place, begun, before, is_ascii = 0, "", "", text.isascii()
    for body, sign in zip(pieces[::2], signs, strict=False):
        stop = place + len(body)
        place = stop + len(sign)
        if sign == "\n":
            if body[-1:] == " " or (before == "\n" and not body) or text[place] == " ":
                return None  # not even
            before = sign
            if not body and not begun:
                continue
        elif (
            sign[0] == "."
            and len(sign) <= 2
            and text[place] != "\n"
            and not _is_long(body)
            and _is_shortened(text, stop)
        ):
            before, begun = sign, begun + body + sign
            continue
        else:
            before = sign
            if not is_ascii and not _starts_sentence(text, place):
                begun += body + sign
                continue
        ends.append(place)
        sentences.append((begun + body + sign).strip())
        begun = ""
    if rest := (begun + pieces[-1]).strip():
        ends.append(len(text))
        sentences.append(rest)
    return ends, sentences


def _is_long(body: str) -> bool:
    word = body[-_SURE_LETTERS:]
    return len(word) == _SURE_LETTERS and word.isalpha() and word.lower() not in _LONG_ABBREVIATIONS


def _starts_sentence(text: str, end: int) -> bool:
    following = text[end + 1 : end + 2]  # behind one white space, as the cleaned text has it
    return not following.islower()


def _stop_ends(text: str, start: int, end: int) -> bool:
    if not _starts_sentence(text, end):
        return False
    return text[end] == "\n" or end - start > 2 or not _is_shortened(text, start)


def _is_shortened(text: str, stop: int) -> bool:
    """True if the word before a full stop is an abbreviation or an initial."""
    word = text[max(0, stop - 24) : stop].rpartition(" ")[2].lstrip(_OPENERS)
    if word.lower() in _ABBREVIATIONS:
        return True
    return (len(word) == 1 or "." in word) and word[0].isupper() and _INITIAL.fullmatch(word) is not None


def count_words(text: str) -> int:
    """Words separated by white space; in scripts without spaces two characters count as one.

    >>> count_words("two words"), count_words("東京都です")
    (2, 3)
    """
    words = len(text.split())
    if text.isascii() or not (unspaced := len(_UNSPACED.findall(text))):
        return words
    return words + unspaced // CHARACTERS_PER_WORD


def split_words(text: str, limit: int) -> Iterator[int]:
    """Offsets that cut a sentence into pieces of at most `limit` words, the end of the text included.

    Cuts fall on white space, or between two characters of a script without spaces.
    """
    start, words, unspaced, last = 0, 0, 0, 0
    for match in _WORD.finditer(text):
        is_unspaced = bool(_UNSPACED.match(match[0]))
        more_words, more_unspaced = words + (not is_unspaced), unspaced + is_unspaced
        # each unspaced run may also count as one word of its own, hence the + 1
        if more_words + more_unspaced // CHARACTERS_PER_WORD + (1 if more_unspaced else 0) > limit and last > start:
            yield last
            start, more_words, more_unspaced = last, int(not is_unspaced), int(is_unspaced)
        words, unspaced, last = more_words, more_unspaced, match.end()
    yield len(text)


_WORD = re.compile(f"{_UNSPACED.pattern}|(?:(?!{_UNSPACED.pattern})\\S)+")
