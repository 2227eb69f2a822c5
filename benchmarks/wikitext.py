"""Wikitext cleaning against WikiExtractor and wikitextparser, interleaved in one process, CPU time.

Usage: python benchmarks/wikitext.py DUMP [ROUNDS]
Peers: `pip install wikiextractor wikitextparser`. Prints a JSON object: median MB of wikitext a CPU second, and ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ralm.corpus.dump import RawPage, read_dump
from ralm.corpus.site import Site
from ralm.corpus.wikitext import parse_article


def clean_ours(pages: list[RawPage], site: Site) -> None:
    for page in pages:
        parse_article(page.wikitext, site)


def clean_wikiextractor(pages: list[RawPage], site: Site) -> None:
    from wikiextractor.extract import Extractor

    for page in pages:
        extractor = Extractor(str(page.page_id), "0", "", page.title, page.wikitext.split("\n"))
        extractor.clean_text(page.wikitext, expand_templates=False)


def clean_wikitextparser(pages: list[RawPage], site: Site) -> None:
    import wikitextparser

    for page in pages:
        for section in wikitextparser.parse(page.wikitext).sections:
            section.plain_text()


CLEANERS: dict[str, Callable[[list[RawPage], Site], None]] = {
    "ralm": clean_ours,
    "wikiextractor": clean_wikiextractor,
    "wikitextparser": clean_wikitextparser,
}


def main(argv: list[str]) -> None:
    """Measure and print."""
    found = list(read_dump(Path(argv[0]), Counter()))
    site, pages = found[0][0], [page for _, page in found if isinstance(page, RawPage)]
    megabytes = sum(len(page.wikitext.encode()) for page in pages) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in CLEANERS}
    for _ in range(int(argv[1]) if len(argv) > 1 else 5):
        for name, clean in CLEANERS.items():
            started_at = time.process_time()
            clean(pages, site)
            seconds[name].append(time.process_time() - started_at)
    rates = {name: megabytes / statistics.median(times) for name, times in seconds.items()}
    ratios = {f"ralm_over_{name}": round(rates["ralm"] / rate, 2) for name, rate in rates.items() if name != "ralm"}
    result = {"pages": len(pages), "mb": round(megabytes, 2)}
    print(json.dumps({**result, **{f"{name}_mb_per_s": round(rate, 2) for name, rate in rates.items()}, **ratios}))


if __name__ == "__main__":
    main(sys.argv[1:])
