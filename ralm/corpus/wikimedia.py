"""Dumps by name: `wiki:enwiki/latest` and `wiki:enwiki/20260801`, resolved through the dump site's status files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralm.errors import ConfigError, DataError
from ralm.sources import fetch_file

PREFIX = "wiki:"
_NAME = re.compile(r"wiki:([a-z][a-z0-9_]*)/(latest|\d{8})")
_DATE = re.compile(r'href="(?:[^"]*/)?(\d{8})/?"')
_JOBS = ("articlesmultistreamdump", "articlesdump")
_ARTICLES = re.compile(r"-pages-articles(?:-multistream)?(\d*)\.xml(?:-p(\d+)p\d+)?\.bz2$")


@dataclass(frozen=True)
class DumpPart:
    """One file of a dump."""

    url: str
    size: int
    sha1: str


@dataclass(frozen=True)
class Dump:
    """A finished dump of one wiki."""

    wiki: str
    date: str
    parts: tuple[DumpPart, ...]

    @property
    def inputs(self) -> dict[str, str]:
        """Content identity: file name -> sha1."""
        return {part.url.rpartition("/")[2]: part.sha1 for part in self.parts}

    def fetch(self, part: DumpPart) -> Path:
        """Download a part (once, resumable) and verify size and sha1."""
        return fetch_file(part.url, sha1=part.sha1, size=part.size)


def resolve_dump(source: str, base_url: str) -> Dump:
    """Find the files of a dump; `latest` is the newest date whose article dump is done.

    Args:
        source: `wiki:NAME/DATE` or `wiki:NAME/latest`.
        base_url: of the dump site, which has `NAME/DATE/dumpstatus.json`.

    Raises:
        ConfigError: another form of source.
        DataError: no such wiki or date, or no finished article dump.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ConfigError(f"source: expected wiki:NAME/latest or wiki:NAME/YYYYMMDD, found {source!r}")
    wiki, date = match.groups()
    base = base_url.rstrip("/")
    if date != "latest":
        return _read_status(base, wiki, date, _fetch_json(f"{base}/{wiki}/{date}/dumpstatus.json"))
    listing = fetch_file(f"{base}/{wiki}/").read_text(encoding="utf-8", errors="replace")
    dates = sorted(set(_DATE.findall(listing)), reverse=True)
    problems = []
    for candidate in dates:
        try:
            return _read_status(base, wiki, candidate, _fetch_json(f"{base}/{wiki}/{candidate}/dumpstatus.json"))
        except DataError as error:
            problems.append(str(error))
    raise DataError(
        f"{base}/{wiki}/: no finished article dump among {dates}{': ' if problems else ''}{'; '.join(problems)}"
    )


def _fetch_json(url: str) -> Any:
    try:
        return json.loads(fetch_file(url).read_bytes())
    except ValueError as error:
        raise DataError(f"{url}: no JSON: {error}") from error


def _read_status(base: str, wiki: str, date: str, status: Any) -> Dump:
    place = f"{base}/{wiki}/{date}/dumpstatus.json"
    jobs = status.get("jobs") if isinstance(status, dict) else None
    if not isinstance(jobs, dict):
        raise DataError(f"{place}: expected a JSON object with 'jobs'")
    states = {}
    for name in _JOBS:
        job = jobs.get(name) or {}
        states[name] = job.get("status", "absent")
        if states[name] != "done":
            continue
        found = []
        for file, facts in (job.get("files") or {}).items():
            if parts := _ARTICLES.search(file):
                found.append((int(parts[1] or 0), int(parts[2] or 0), _read_part(base, wiki, date, file, facts)))
        if found:
            return Dump(wiki, date, tuple(part for _, _, part in sorted(found, key=lambda item: item[:2])))
    raise DataError(f"{place}: the article dump is not done: {states}")


def _read_part(base: str, wiki: str, date: str, file: str, facts: Any) -> DumpPart:
    try:
        path = str(facts.get("url") or f"/{wiki}/{date}/{file}")
        url = path if "://" in path else f"{base}/{path.lstrip('/')}"
        return DumpPart(url=url, size=int(facts["size"]), sha1=str(facts["sha1"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{base}/{wiki}/{date}/dumpstatus.json: file {file!r} lacks size or sha1: {error!r}") from error
