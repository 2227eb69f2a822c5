"""What a wiki calls its namespaces: read from a dump's own `<siteinfo>`, so that no language is built in."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ARTICLES = 0
DROPPED_LINKS = (-2, 6, 14)
"""Media, file and category links leave no text (a leading colon turns them into plain links)."""

MAX_KNOWN_PREFIXES = 4096
_INTERWIKI = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*|simple|be-x-old|roa-[a-z]+|zh-[a-z-]+")
_CANONICAL = {
    -2: ("Media",),
    -1: ("Special",),
    1: ("Talk",),
    2: ("User",),
    3: ("User talk",),
    4: ("Project",),
    5: ("Project talk",),
    6: ("File", "Image"),
    7: ("File talk", "Image talk"),
    8: ("MediaWiki",),
    9: ("MediaWiki talk",),
    10: ("Template",),
    11: ("Template talk",),
    12: ("Help",),
    13: ("Help talk",),
    14: ("Category",),
    15: ("Category talk",),
}
"""MediaWiki's own names, valid on every wiki beside the local ones."""


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower()


@dataclass(frozen=True)
class Site:
    """Namespace numbers by lower-case name."""

    numbers: Mapping[str, int] = field(
        default_factory=lambda: {_normal(name): number for number, names in _CANONICAL.items() for name in names}
    )

    @classmethod
    def from_names(cls, names: Mapping[int, str]) -> Site:
        """A site with the names of its `<siteinfo>` (number -> local name) beside the canonical ones."""
        local = {_normal(name): number for number, name in names.items() if name}
        return cls({**cls().numbers, **local})

    @property
    def digest(self) -> str:
        """Identity of the names (16 hex digits)."""
        return hashlib.sha256(json.dumps(sorted(self.numbers.items())).encode()).hexdigest()[:16]

    def namespace(self, title: str) -> int:
        """The namespace number of a page title: 0 for an article.

        >>> Site().namespace("Template:Infobox"), Site().namespace("2001: A Space Odyssey")
        (10, 0)
        """
        prefix, colon, _ = title.partition(":")
        return self.numbers.get(_normal(prefix), ARTICLES) if colon else ARTICLES

    def __reduce__(self) -> tuple[type[Site], tuple[Mapping[str, int]]]:
        return Site, (self.numbers,)  # what is kept beside the names stays in its process

    def leaves_no_text(self, prefix: str) -> bool:
        """True for the prefix of files, categories and links to the same page in other languages.

        >>> [Site().leaves_no_text(prefix) for prefix in ("File", "de", "Talk", "Tron")]
        [True, True, False, False]
        """
        known = self._known_prefixes.get(prefix)
        if known is None:
            number = self.namespace(prefix + ":")
            known = number in DROPPED_LINKS or bool(number == ARTICLES and _INTERWIKI.fullmatch(prefix.strip()))
            if len(self._known_prefixes) < MAX_KNOWN_PREFIXES:
                self._known_prefixes[prefix] = known
        return known

    @functools.cached_property
    def _known_prefixes(self) -> dict[str, bool]:
        return {}
