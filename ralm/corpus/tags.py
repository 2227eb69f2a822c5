"""First pass of the wikitext scanner: comments, HTML and extension tags go, before templates and links are matched."""

from __future__ import annotations

import re


def name_set(names: str) -> frozenset[str]:
    """Names written in one string, separated by spaces."""
    return frozenset(names.split())


_TAG = re.compile(r"<(?:!--|(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s[^<>]*|/)?)>)")
_PLAIN_REFERENCE = re.compile(r"<ref(?:\s[^<>]*[^<>/]|\s*)>[^<]*</ref>|<ref\s[^<>]*/>")
"""Most references; removed by the regex engine alone, before the others are looked at one by one."""
_STRAY = re.compile(
    r"</?(?:ref|references|div|span|font|br|center|small|big|sup|sub|table|tr|td|th|p|li|ul|ol|nowiki|math|gallery"
    r"|blockquote|code|noinclude|includeonly|onlyinclude)\b[^<>\n]{0,200}>?",
    re.IGNORECASE,
)
_DROPPED = name_set(
    "pre source syntaxhighlight gallery timeline imagemap score hiero graph chart mapframe maplink templatestyles "
    "templatedata inputbox categorytree indicator includeonly rss section dynamicpagelist charinsert phonos"
)
"""Elements that go with their content: pictures, source code, layout."""
_BLOCKS = name_set("p div center blockquote poem ul ol dl li dd dt h1 h2 h3 h4 h5 h6 hr")
_CLOSERS = {
    name: re.compile(rf"</{name}\s*>", re.IGNORECASE)
    for name in (*_DROPPED, "nowiki", "math", "chem", "ce", "references")
}
_REF_END = re.compile(r"</ref\s*/?>|<ref\s*/>|(<ref(?=[\s>])[^<>]*(?<!/)>)", re.IGNORECASE)
_SHIELDED = "[]{}|'=*#:;<>_-!"
_SHIELD = {ord(character): 0xE000 + place for place, character in enumerate(_SHIELDED)}
PROTECTED = {chr(code): chr(character) for character, code in _SHIELD.items()}
"""Stand-ins for the characters of `<nowiki>` text, which the later passes must not read as markup."""
LINE_BREAK = "\ue020"
"""Stands for `<br>` until lines have been read: a space in prose, a comma in an infobox value."""
_VARIANT = re.compile(r"-\{(?!\{)([^{}]*)\}-")
_HIDDEN_FLAGS = re.compile(r"[HT-]")
_FIRST_VARIANT = re.compile(r"\s*[a-z][a-z-]*\s*:\s*([^;]*)")
_SIMPLE_MATH = re.compile(r"[\w\s.,+*/=()<>^!-]{1,40}")


def strip_tags(text: str) -> str:
    """Remove comments, references and tags; `<nowiki>` content comes out protected (see `PROTECTED`).

    HTML tables become wikitext tables, `<br>` a placeholder, block elements line ends. An element without its end tag
    loses its tags or at most the rest of its line, never the rest of the article. Linear in the length of the text.
    """
    if "<" not in text:
        return text
    text = _PLAIN_REFERENCE.sub("", text)
    pieces: list[str] = []
    missing: set[str] = set()
    position = 0
    for match in _TAG.finditer(text):
        start = match.start()
        if start < position:
            continue
        pieces.append(text[position:start])
        closing, name, attributes = match.groups()
        if name is None:
            position = _comment_end(text, match.end(), missing)
            continue
        replacement, position = _read_tag(text, match.end(), bool(closing), name.lower(), attributes, missing)
        if replacement:
            pieces.append(replacement)
    pieces.append(text[position:])
    text = "".join(pieces)
    return _STRAY.sub("", text) if "<" in text else text


def _comment_end(text: str, start: int, missing: set[str]) -> int:
    end = -1 if "!--" in missing else text.find("-->", start)
    if end >= 0:
        return end + 3
    missing.add("!--")
    return _line_end(text, start)


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _read_tag(text: str, end: int, closing: bool, name: str, attributes: str, missing: set[str]) -> tuple[str, int]:
    """What a tag is replaced with, and where reading goes on."""
    if name == "br":
        return LINE_BREAK, end
    if name in _BLOCKS:
        return "\n", end
    if name == "table":
        return ("\n|}\n" if closing else "\n{|\n"), end
    if closing or attributes.endswith("/"):
        return "", end
    if name == "ref":
        return "", _reference_end(text, end, missing)
    if name == "sup":
        power = text[end : end + 1]
        return ("^" if power.isdigit() or power in "-−–+" else ""), end  # "10^6", not "106"; "1st" stays
    if name not in _CLOSERS or name in missing:
        return "", end
    close = _CLOSERS[name].search(text, end)
    if close is None:
        missing.add(name)
        return "", end
    return _element_text(name, text[end : close.start()]), close.end()


def _element_text(name: str, content: str) -> str:
    if name == "nowiki":
        return content.translate(_SHIELD)
    if name in ("math", "chem", "ce") and _SIMPLE_MATH.fullmatch(content):
        return content.strip().translate(_SHIELD)
    return ""


def _reference_end(text: str, start: int, missing: set[str]) -> int:
    """The end of a reference whose start tag ends at `start`; an unclosed one ends with its line."""
    close = None if "ref" in missing else _REF_END.search(text, start)
    if close is None:
        missing.add("ref")
    elif close.group(1) is None:
        return close.end()
    if text.startswith(("{{", "["), start):
        return start  # the citation in it is removed as a template or link
    return min(_line_end(text, start), close.start() if close else len(text))


def show_variants(text: str) -> str:
    """Replace `-{flags|zh-hans:a;zh-hant:b}-` by what it shows."""
    return _VARIANT.sub(lambda match: _variant_text(match[1]), text)


def _variant_text(content: str) -> str:
    """What `-{flags|zh-hans:a;zh-hant:b}-` shows: the first variant; nothing for hidden rules and titles.

    >>> _variant_text("zh-hans:电脑;zh-hant:電腦"), _variant_text("A|word"), _variant_text("H|zh-cn:a;")
    ('电脑', 'word', '')
    """
    flags, bar, body = content.rpartition("|")
    if bar and _HIDDEN_FLAGS.search(flags):
        return ""
    variant = _FIRST_VARIANT.match(body)
    return variant[1] if variant else body
