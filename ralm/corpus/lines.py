"""Third pass of the wikitext scanner: markup of lines and characters, entities, white space.

Each step goes over the whole text of a page, and there are as few as can be: most of them begin with a literal, which
the regex engine looks for at full speed, and replace by a constant, so that no Python runs for a match.
"""

from __future__ import annotations

import html
import re

import numpy as np

from ralm.corpus.tags import LINE_BREAK, PROTECTED

_MAGIC = re.compile(r"__([^\W\d_]{3,})__")
_LINE_MARKUP = re.compile(
    r"\n(?=[\s\-*#:;{|!])[ \t]*+"
    r"(?:-{4,}|(?:[*#:;]++[ \t]*+)?(?:\{\||\|).*|![^\n]*(?:\||!!).*|[*#:;]++[ \t]*+)?+"
    r"(?:\n[ \t]*+(?:-{4,}|(?:[*#:;]++[ \t]*+)?(?:\{\||\|).*|![^\n]*(?:\||!!).*|[*#:;]++[ \t]*+)?+)*+"
)
"""Rules, list marks, table rows that are left, empty lines; the text begins with a line end."""
_SPACES = (
    "\x0b\f\x85\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_INVISIBLE = "\xad\u200b\u200e\u200f\u2060\ufeff"
_PROSE = {**PROTECTED, **dict.fromkeys(_SPACES, " "), **dict.fromkeys(_INVISIBLE, ""), LINE_BREAK: " "}
_VALUE = {**_PROSE, LINE_BREAK: "\n"}
_REPLACED = re.compile(f"[{''.join(_PROSE)}]")
"""Characters that the tag pass protected, and white space other than the plain kind."""
_QUOTES = re.compile(r"''(?:'(?:'')?)?")  # italic, bold, both; of four the last is an apostrophe
_EMPTY_LINES = re.compile(r"\n[ \n]+")
_ENTITY = re.compile(r"&(?:amp;)*(?:#[xX]?[0-9a-fA-F]{1,7}|[a-zA-Z][a-zA-Z0-9]{1,30});")  # `&amp;lt;`: escaped twice
_BRACKETS = re.compile(r"\((?=[\s,;:)])(?:\s*[,;:](?=[\s,;:)]))*\s*(\)?)")
"""What is left of brackets whose templates are gone: `( )`, `(; from`."""
_NEEDLESS_SPACE = re.compile(r" (?=[ \n,.;:)])(?=[ \n]|.(?:\s|$))")  # the first look is the quick one
_BROKEN_MARKUP = re.compile(r"\[\[|\]\]|\{\{+|\}\}+|\{\||\|\}|\[(?=https?:)")


def clean_lines(text: str, line_break: str = " ") -> str:
    """Text without the markup of lines and characters.

    Args:
        text: begins with a line end.
        line_break: what `<br>` becomes.
    """
    if "_" in text and "__" in text:
        text = _MAGIC.sub(lambda match: match[0] if match[1] != match[1].upper() else "", text)
    if "'" in text:
        text = _QUOTES.sub("", text)
    text = _LINE_MARKUP.sub("\n", text)
    if "[" in text or "]" in text or "{" in text or "}" in text:
        text = _BROKEN_MARKUP.sub("", text)
    if "&" in text:
        text = _ENTITY.sub(_character, text.replace("&nbsp;", " "))
    text = text.replace("\xa0", " ").replace("\t", " ")
    if not text.isascii() and _has_replaced(text):
        text = _REPLACED.sub(_restore_value if line_break == "\n" else _restore_prose, text)
    if "(" in text:
        text = _BRACKETS.sub(_bracket_start, text)
    return _EMPTY_LINES.sub("\n", _remove_needless_spaces(text))


def _has_replaced(text: str) -> bool:
    """Whether there may be a character of `_REPLACED`."""
    codes = _codes(text)
    return codes is None or bool(_IS_REPLACED.take(codes).any())


def _remove_needless_spaces(text: str) -> str:
    """`_NEEDLESS_SPACE.sub("", text)`: the spaces are found by numpy, since one character in six is a space."""
    codes = _codes(text)
    if codes is None:
        return _NEEDLESS_SPACE.sub("", text)
    after = codes[1:]
    is_found = (after == ord(" ")) | (after == ord("\n"))
    is_found |= (after - ord(")") <= ord(".") - ord(")")) | (after - ord(":") <= ord(";") - ord(":"))  # and `*+-`
    is_found &= codes[:-1] == ord(" ")
    places = np.flatnonzero(is_found)
    if not len(places):
        return text
    after, next_after = codes[places + 1], codes.take(places + 2, mode="clip")
    is_last = places + 2 >= len(codes)
    is_needless = _IS_SPACE[after] | (_IS_SIGN[after] & (_IS_SPACE[next_after] | is_last))
    found = places[is_needless].tolist()
    starts = [0, *(place + 1 for place in found)]
    return "".join([text[start:stop] for start, stop in zip(starts, [*found, len(text)], strict=True)])


def _codes(text: str) -> np.ndarray | None:
    """The characters as numbers; None where that is not worth it, or where one needs two."""
    if len(text) < MIN_CODES:
        return None
    codes = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)
    return codes if len(codes) == len(text) else None


def _table(characters: str) -> np.ndarray:
    """Whether a character is among these, by its number."""
    is_in = np.zeros(1 << 16, bool)
    is_in[[ord(character) for character in characters]] = True
    return is_in


def _bracket_start(match: re.Match[str]) -> str:
    return "" if match[1] else "("


def _restore_prose(match: re.Match[str]) -> str:
    return _PROSE[match[0]]


def _restore_value(match: re.Match[str]) -> str:
    return _VALUE[match[0]]


def _character(match: re.Match[str]) -> str:
    return html.unescape("&" + match[0].replace("amp;", "")[1:] if match[0] != "&amp;" else "&amp;")


MIN_CODES = 2000
"""Shorter texts are looked through by regex."""
_SIGNS = ",.;:)"
_IS_SIGN, _IS_REPLACED = _table(_SIGNS), _table("".join(_PROSE))
_IS_SPACE = _table("".join(character for character in map(chr, range(1 << 14)) if character.isspace()))
