"""Templates that carry content: infoboxes, and those that only dress up their arguments (`{{lang|fr|...}}`).

Nothing here knows what a wiki's templates do; all others leave no text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

from ralm.corpus.tags import name_set

_PIPE = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||\n\|\}|\|")
_BRACKETS = re.compile(r"\[\[|\]\]|\{\{|\}\}")
_NAME = re.compile(r"\s*([^|{}\[\]\n=]*)")
_FIELD = re.compile(r"\n[ \t]*\|[ \t]*([^|={}\[\]\n]{1,80}?)[ \t]*=[ \t]*(?=\S)")
_PLAIN_FIELD = re.compile(r"[^\W\d_][^|={}\[\]\n]*")
_MEASURES = frozenset({"convert", "cvt", "convinfobox"})
_DATES = re.compile(r".*\bdate\b.*|(?:birth|death|dob|bda|film|start|end|release)[ _-]?(?:date|and|year|-|$).*")
_DROPPED = re.compile(
    r"(?:cite|citation|efn|refn|sfn|harv|r$|rp$|notetag|note|ref|dead link|fact|cn$|clarify|when$|see|audio|"
    r"ipa|pron|coord|flagicon|flag icon|dagger|void|won|nom$|#|infobox|image|file|update|navbar|"
    r"edit|legend|color box|cl$|reflist|webarchive|isbn|doi|main)"
)
"""Beginnings of names whose arguments are no facts: sources, notes, pictures, layout."""
_WORDS = {
    "ndash": "–",
    "en dash": "–",
    "spaced ndash": " – ",
    "snd": " – ",
    "spnd": " – ",
    "mdash": "—",
    "em dash": "—",
    "spaced mdash": " — ",
    "nbsp": " ",
    "spaces": " ",
    "'": "'",
    "'s": "'s",
    "-": "",
    "·": "·",
    "•": "•",
    "dot": "·",
    "!": "",
    "=": "=",
}
_FIRST = name_set(
    "nowrap nobr small big smaller larger nobold bold strong em abbr sic tooltip frac angbr vanchor anchor lc: uc: key "
    "ucfirst: keypress linktext noitalic mvar val quote blockquote cquote quotation bquote"
) | {"visible anchor", "as written", "not a typo", "no italic"}
"""Templates that show their first argument."""
_SECOND = name_set("lang transl transliteration wikt-lang color")
"""Templates that show their second argument (the first is a language or a colour)."""


def template_text(raw: str, clean: Callable[[str], str] | None = None) -> str:
    """The text that an inline template leaves in a sentence, empty for most.

    Args:
        raw: the template's source without its braces.
        clean: turns an argument's wikitext into text; None if there is no markup in it.

    >>> template_text("convert|11|km|mi"), template_text("lang|fr|Tour Eiffel"), template_text("cite web|url=x")
    ('11 km', 'Tour Eiffel', '')
    """
    shown = _shown(raw.partition("|")[0])
    if isinstance(shown, str):
        return shown
    if shown == _MEASURE:
        return _measure(_positional(raw))
    if shown == _NUMBER:
        return raw.partition(":")[2].strip()
    values = _positional(raw)
    if len(values) <= shown:
        return ""
    return clean(values[shown]) if clean else values[shown]


_MEASURE, _NUMBER = -1, -2


@functools.lru_cache(maxsize=4096)
def _shown(head: str) -> str | int:
    """The text that a template with this beginning leaves, or the place of the argument that it shows."""
    name = _template_name(head)
    if name in _WORDS:
        return _WORDS[name]
    if name in _MEASURES:
        return _MEASURE
    if name.startswith("formatnum:"):
        return _NUMBER
    return 0 if name in _FIRST or name.startswith("lang-") else 1 if name in _SECOND else ""


def is_infobox(raw: str, *, in_lead: bool) -> bool:
    """True for a template that lists facts about the subject, whatever the language calls it.

    By name (`infobox`, `taxobox`), or by shape: in the lead, with at least four named fields, each on its own line.
    """
    name = _template_name(raw)
    if "infobox" in name or "taxobox" in name:
        return True
    if not in_lead or _DROPPED.match(name):
        return False
    fields = {match[1] for match in _FIELD.finditer(raw) if _PLAIN_FIELD.fullmatch(match[1])}
    return len(fields) >= 4


def infobox_fields(raw: str) -> Iterator[tuple[str, str]]:
    """Named fields of an infobox with the wikitext of their values; templates in values are replaced by arguments."""
    for argument in split_arguments(raw)[1:]:
        name, equals, value = argument.partition("=")
        name = name.strip()
        if "\n" in name:  # a line without a name, such as a picture's, before that of the field
            continue
        name = " ".join(name.replace("_", " ").split())
        if equals and name and value.strip() and "[" not in name and "{" not in name:
            yield name, expand_arguments(value)


def expand_arguments(value: str) -> str:
    """Replace each template in an infobox value by its positional arguments, innermost first.

    >>> expand_arguments("{{birth date and age|1879|3|14|df=y}} in {{nowrap|[[Ulm]]}}")
    '1879-3-14 in [[Ulm]]'
    """
    for _ in range(8 if "{{" in value else 0):  # deeper nesting is dropped by the scanner
        value, changed = _INNERMOST.subn(lambda match: _shown_arguments(match[1]), value)
        if not changed:
            break
    return value


_INNERMOST = re.compile(r"\{\{([^{}]*)\}\}")


def _shown_arguments(raw: str) -> str:
    name = _template_name(raw)
    if name in _WORDS or name in _MEASURES or name in _FIRST or name in _SECOND:
        return template_text(raw)
    if _DROPPED.match(name):
        return ""
    values = [value.strip() for value in _positional(raw) if value.strip()]
    if _DATES.fullmatch(name) and (numbers := [value for value in values if value.isdecimal()]):
        return "-".join(numbers[:3])
    return ", ".join(values)


def _measure(values: list[str]) -> str:
    """`{{convert|11|km|mi}}` as `11 km`, `{{convert|5|to|7|m}}` as `5 to 7 m`."""
    words = [value.strip() for value in values]
    kept: list[str] = []
    for word in words:
        kept.append(word)
        if kept[0] and not re.fullmatch(r"[-−+±]?[\d,.]+(?:/\d+)?|to|and|or|by|x|-|–|to\(-\)|\(-\)", word):
            break
    return " ".join(kept)


def _template_name(raw: str) -> str:
    match = _NAME.match(raw)
    return match[1].strip().replace("_", " ").lower() if match else ""


def _positional(raw: str) -> list[str]:
    """Positional arguments, also those written `1=...`, and the words of a quotation."""
    values = []
    for argument in split_arguments(raw)[1:]:
        name, equals, value = argument.partition("=")
        if not equals:
            values.append(argument)
        elif name.strip().isdecimal() or name.strip() in ("text", "quote"):
            values.append(value)
    return values


def split_arguments(raw: str) -> list[str]:
    """Split a template's source at its own pipes, not at those of links, templates and tables in it.

    >>> split_arguments("Infobox|name=[[A|B]]|x={{y|z}}")
    ['Infobox', 'name=[[A|B]]', 'x={{y|z}}']
    """
    parts = raw.split("|")
    if "[[" not in raw and "{{" not in raw and "{|" not in raw:
        return parts
    if "{|" in raw or "|}" in raw:
        return _split_at_pipes(raw)
    whole: list[str] = []
    depth = 0
    for part in parts:
        if depth:
            whole[-1] += "|" + part
        else:
            whole.append(part)
        if "[" in part or "{" in part or (depth and ("]" in part or "}" in part)):
            for token in _BRACKETS.findall(part):
                depth = depth + 1 if token in ("[[", "{{") else max(depth - 1, 0)
    return whole


def _split_at_pipes(raw: str) -> list[str]:
    """`split_arguments` of a source with tables in it, whose marks have pipes of their own."""
    parts, depth, start = [], 0, 0
    for match in _PIPE.finditer(raw):
        token = match[0]
        if token == "|":
            if depth == 0:
                parts.append(raw[start : match.start()])
                start = match.end()
        elif token in ("[[", "{{", "{|"):
            depth += 1
        else:
            depth = max(depth - 1, 0)
    parts.append(raw[start:])
    return parts
