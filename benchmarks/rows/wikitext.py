"""Wikitext to sections, infoboxes and passages, against WikiExtractor and wikitextparser on the same articles.

All ways run in this process, in turns, and CPU time counts. The peers do what they are for: WikiExtractor's `Extractor`
makes text without expanding templates, wikitextparser makes the text of each section and of each infobox value. Neither
cuts passages, so ours is measured without (`x_wikiextractor`) and with that (`x_wikiextractor_passages`).

Words are compared with WikiExtractor's on the same articles, headings left out. Templates are taken out of the articles
before, for both: it drops them, and we show the text of some.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks import inputs
from benchmarks.machine import cpu_seconds, median, spread
from benchmarks.suite import Bench, Measured
from ralm.corpus.build import cut_batch
from ralm.corpus.dump import RawPage, WikiPages, read_dump
from ralm.corpus.passages import SplitLimits
from ralm.corpus.site import Site
from ralm.corpus.wikitext import parse_article

OURS, WITH_PASSAGES = "ralm, sections and infoboxes", "ralm, passages too"
PEERS = {"wikiextractor": "wikiextractor", "wikitextparser": "wikitextparser"}
"""Name of the figure and module."""
LEFT_MARKUP = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|<ref|</|\|-|&(?:lt|gt|nbsp|amp);|''|==|__[A-Z]{3,}__|\[https?:", re.IGNORECASE
)
_INNERMOST_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_NOT_TEXT = re.compile(r"<h\d>.*?</h\d>|</?(?:ul|ol|dl|li|dd|dt|b|i|a|br)\b[^>]*>|(?:formula|codice)_\d+")
"""WikiExtractor's headings, tags, and what it puts in the place of formulas and program text."""
_WORD = re.compile(r"\w+")


def measure(bench: Bench) -> Measured:
    """P1."""
    site, pages = made_pages() if bench.small else real_pages()
    batch = WikiPages(site, [*pages])
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: [parse_article(page.wikitext, site) for page in pages],
        WITH_PASSAGES: lambda: cut_batch(batch, SplitLimits()),
    }
    for name, function in (("wikiextractor", wikiextractor), ("wikitextparser", wikitextparser)):
        if importlib.util.find_spec(PEERS[name]):
            ways[name] = functools.partial(each_page, function, pages)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.repeats):
        for name, way in ways.items():
            times[name].append(cpu_seconds(way)[1])
    megabytes = sum(len(page.wikitext.encode()) for page in pages) / 1e6
    rates = {name: megabytes / median(spent) for name, spent in times.items()}
    figures = {"pages": float(len(pages)), "mb_per_s": rates[OURS], "mb_per_s_passages": rates[WITH_PASSAGES]}
    for name in PEERS.keys() & rates.keys():
        figures[f"x_{name}"] = rates[OURS] / rates[name]
        figures[f"x_{name}_passages"] = rates[WITH_PASSAGES] / rates[name]
    if "wikiextractor" in rates:
        figures["word_precision"], figures["word_recall"] = compare_words(pages, site)
    texts = cut_batch(batch, SplitLimits()).column("text").to_pylist()
    figures |= {"passages": float(len(texts)), "left_markup": float(count_left_markup(texts))}
    table = ["| way | MB/s of wikitext | s, least to most | ours / it | with passages / it |", "|---|---|---|---|---|"]
    for name, rate in rates.items():
        ratios = f"{rates[OURS] / rate:.2f} | {rates[WITH_PASSAGES] / rate:.2f}"
        table.append(f"| {name} | {rate:.2f} | {spread(times[name])} | {ratios} |")
    return Measured(figures, table)


def real_pages() -> tuple[Site, list[RawPage]]:
    """106 articles of 2016."""
    found = list(read_dump(inputs.wikipedia_slice(), Counter()))
    return found[0][0], [page for _, page in found if isinstance(page, RawPage)]


def made_pages() -> tuple[Site, list[RawPage]]:
    """A few made articles with the markup that articles have."""
    town = (
        "{{Infobox town\n| name = Town %d\n| area = 12 km\n| mayor = [[Ann B.]]\n| population = 999\n}}\n"
        "'''Town %d''' is a [[town]] in the [[county (region)|county]] of [[North]].<ref>A [[book]].</ref> It has a "
        "''small'' harbour&nbsp;and [http://x.org two schools].{{citation needed}}\n\n"
        "[[File:A.jpg|thumb|The [[harbour]]]]\n== History ==\nThe town was founded in 1%03d. "
        + "Many people came in the years after that. "
        * 30
        + "\n"
        "* First [[mayor]]: Ann B.\n* Second mayor: Carl D.\n"
        "{| class=wikitable\n! year !! people\n|-\n| 1900 || 12\n|}\n"
        "=== Fire ===\nA fire burnt the <b>old</b> houses.\n\n[[Category:Towns]]\n[[de:Stadt]]\n"
    )
    return Site(), [RawPage(number, number, f"Town {number}", town % (number, number, number)) for number in range(30)]


def each_page(function: Callable[[RawPage], object], pages: Sequence[RawPage]) -> None:
    """Call it for all pages."""
    for page in pages:
        function(page)


def wikiextractor(page: RawPage) -> list[str]:
    """The text as WikiExtractor makes it."""
    from wikiextractor.extract import Extractor

    extractor = Extractor(str(page.page_id), "0", "", page.title, page.wikitext.split("\n"))
    lines: list[str] = extractor.clean_text(page.wikitext, expand_templates=False)
    return lines


def wikitextparser(page: RawPage) -> tuple[list[str], list[dict[str, str]]]:
    """The text of each section without those below it, and infobox values."""
    import wikitextparser as parser

    parsed = parser.parse(page.wikitext)
    boxes = [
        {argument.name.strip(): parser.parse(argument.value).plain_text() for argument in template.arguments}
        for template in parsed.templates
        if "infobox" in template.name.lower()
    ]
    return [section.plain_text() for section in parsed.get_sections(include_subsections=False)], boxes


def compare_words(pages: Sequence[RawPage], site: Site) -> tuple[float, float]:
    """Precision and recall of our words against WikiExtractor's, each word of an article as often as it is there."""
    from wikiextractor.extract import Extractor

    both = num_ours = num_theirs = 0
    for page in pages:
        wikitext = without_templates(page.wikitext)
        extractor = Extractor(
            str(page.page_id), "0", "", page.title, wikitext.split("\n"), HtmlFormatting=True, keepSections=False
        )  # with tags: else it drops all lists
        text = "\n".join(extractor.clean_text(wikitext, expand_templates=False))
        theirs = Counter(_WORD.findall(html.unescape(_NOT_TEXT.sub(" ", text))))
        sections = parse_article(wikitext, site).sections
        ours = Counter(_WORD.findall("\n".join(section.text for section in sections)))
        both += (ours & theirs).total()
        num_ours += ours.total()
        num_theirs += theirs.total()
    return both / max(1, num_ours), both / max(1, num_theirs)


def without_templates(wikitext: str) -> str:
    """Wikitext whose templates are gone, innermost first."""
    found = 1
    while found:
        wikitext, found = _INNERMOST_TEMPLATE.subn("", wikitext)
    return wikitext


def count_left_markup(texts: Sequence[str]) -> int:
    """Passages with any markup in them."""
    return sum(LEFT_MARKUP.search(text) is not None for text in texts)
