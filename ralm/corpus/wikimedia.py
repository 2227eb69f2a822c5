"""Dumps by name: `wiki:enwiki/latest` and `wiki:enwiki/20260801`, resolved through the dump site's status files.

A dump site may have mirrors. Which one gave a file makes no difference: size and sha1 come from the status file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ralm.artifacts.files import cache_folder, read_json, write_json
from ralm.errors import ConfigError, DataError, RalmError, UnreachableError
from ralm.fetch.http import AnswerError, read_small
from ralm.fetch.mirrors import split_mirrors
from ralm.sources import fetch_file

PREFIX = "wiki:"
LATEST = "latest"
_NAME = re.compile(r"wiki:([a-z][a-z0-9_]*)/(latest|\d{8})")
_DATE = re.compile(r'href="(?:[^"]*/)?(\d{8})/?"')
_JOBS = ("articlesmultistreamdump", "articlesdump")
_ARTICLES = re.compile(r"[^/]+-pages-articles(?:-multistream)?(\d*)\.xml(?:-p(\d+)p\d+)?\.bz2")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_GONE = (404, 410)
logger = logging.getLogger(__name__)


class UnfinishedError(DataError):
    """The dump is announced, but its articles are not written yet."""


@dataclasses.dataclass(frozen=True)
class DumpPart:
    """One file of a dump."""

    name: str
    size: int
    sha1: str


@dataclasses.dataclass(frozen=True)
class Dump:
    """A finished dump of one wiki."""

    wiki: str
    date: str
    parts: tuple[DumpPart, ...]
    mirrors: tuple[str, ...]
    """Base addresses of the sites that may have it, in the order in which they are asked."""
    passed_over: tuple[str, ...] = ()
    """Why newer dumps were not taken, where the newest finished one was asked for."""

    @property
    def inputs(self) -> dict[str, str]:
        """Content identity: file name -> sha1."""
        return {part.name: part.sha1 for part in self.parts}

    def files(self) -> Iterator[Path]:
        """Local copies of all parts in order, fetched as they are taken: once, resumed, size and sha1 verified.

        A mirror that fails is asked last for the parts that follow.

        Raises:
            DataError: no mirror gives a part whole and right; the message has the reason of each.
        """
        mirrors = list(self.mirrors)
        for part in self.parts:
            yield self._fetch(part, mirrors)

    def _fetch(self, part: DumpPart, mirrors: list[str]) -> Path:
        problems: list[RalmError] = []
        for base in tuple(mirrors):
            try:
                url = f"{base}/{self.wiki}/{self.date}/{part.name}"
                return fetch_file(url, sha1=part.sha1, size=part.size)
            except DataError as error:
                logger.warning("%s", error)
                problems.append(error)
                mirrors.remove(base)
                mirrors.append(base)
        raise _joined(problems, part.name)


def resolve_dump(source: str, base_url: str) -> Dump:
    """Find the files of a dump; where no mirror can be reached, those that were found last time.

    Args:
        source: `wiki:NAME/DATE` or `wiki:NAME/latest`.
        base_url: of the dump site, which has `NAME/DATE/dumpstatus.json`, or of several mirrors with commas between.

    Raises:
        ConfigError: another form of source or address.
        DataError: see `find_dump`.
        UnreachableError: no mirror can be reached, and none ever was.
    """
    key = hashlib.sha256(f"{source}\n{base_url}".encode()).hexdigest()[:32]
    note = cache_folder("downloads") / "dumps" / f"{key}.json"
    try:
        dump = find_dump(source, base_url)
    except UnreachableError as error:
        if not note.is_file():
            raise
        logger.warning("%s; taking the dump that was found before", error)
        plain = read_json(str(note))
        parts = tuple(DumpPart(**part) for part in plain["parts"])
        return Dump(plain["wiki"], plain["date"], parts, tuple(plain["mirrors"]))
    write_json(note, dataclasses.asdict(dump))
    return dump


def find_dump(source: str, base_url: str) -> Dump:
    """Ask the dump site for a dump as it is now; `latest` is the newest date whose article dump is done.

    The first mirror that has the dump decides, so that of `latest` the mirrors' order matters: the most current first.

    Raises:
        ConfigError: another form of source or address.
        UnfinishedError: it is not done yet, or none is.
        DataError: no such wiki or date, or status files that cannot be understood.
        UnreachableError: no mirror can be reached.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ConfigError(f"source: expected wiki:NAME/latest or wiki:NAME/YYYYMMDD, found {source!r}")
    wiki, date = match.groups()
    mirrors = split_mirrors(base_url)
    problems: list[RalmError] = []
    for number, base in enumerate(mirrors):
        try:
            dump = _find_newest(base, wiki) if date == LATEST else _read_dump(base, wiki, date)
        except (DataError, UnreachableError) as error:
            logger.debug("%s", error)
            problems.append(error)
        else:
            return dataclasses.replace(dump, mirrors=mirrors[number:] + mirrors[:number])
    raise _joined(problems, source)


def _joined(problems: Sequence[RalmError], what: str) -> RalmError:
    """One error for the failures of all mirrors."""
    if len(problems) == 1:
        return problems[0]
    text = f"{what}: no mirror gives it: {'; '.join(map(str, problems))}"
    if all(isinstance(problem, UnreachableError) for problem in problems):
        return UnreachableError(text)
    return UnfinishedError(text) if any(isinstance(error, UnfinishedError) for error in problems) else DataError(text)


def _find_newest(base: str, wiki: str) -> Dump:
    listing = read_small(f"{base}/{wiki}/").decode("utf-8", errors="replace")
    dates = sorted(set(_DATE.findall(listing)), reverse=True)
    problems: list[DataError] = []
    for date in dates:
        try:
            dump = _read_dump(base, wiki, date)
        except AnswerError as error:
            if error.code not in _GONE:
                raise
            problems.append(UnfinishedError(f"{error}: it has no status yet"))
        except DataError as error:
            problems.append(error)
        else:
            return dataclasses.replace(dump, passed_over=tuple(map(str, problems)))
    is_waiting = problems and all(isinstance(problem, UnfinishedError) for problem in problems)
    text = f"{base}/{wiki}/: no finished article dump among {dates}{''.join(f'; {problem}' for problem in problems)}"
    raise UnfinishedError(text) if is_waiting else DataError(text)


def _read_dump(base: str, wiki: str, date: str) -> Dump:
    place = f"{base}/{wiki}/{date}/dumpstatus.json"
    try:
        status = json.loads(read_small(place))
    except ValueError as error:
        raise DataError(f"{place}: no JSON: {error}") from error
    jobs = status.get("jobs") if isinstance(status, dict) else None
    if not isinstance(jobs, dict):
        raise DataError(f"{place}: expected a JSON object with 'jobs'")
    states = {}
    for name in _JOBS:
        job = jobs.get(name)
        if not isinstance(job, dict):
            states[name] = "absent"
        elif (state := job.get("status")) != "done":
            states[name] = str(state)
        elif parts := _read_parts(place, job.get("files")):
            return Dump(wiki, date, parts, (base,))
        else:
            states[name] = "done without articles"
    raise UnfinishedError(f"{place}: the article dump is not done: {states}")


def _read_parts(place: str, files: Any) -> tuple[DumpPart, ...]:
    """The article files of a finished job, by number and first page."""
    found = []
    for name, facts in (files if isinstance(files, dict) else {}).items():
        if match := _ARTICLES.fullmatch(name):
            size, sha1 = (facts.get(fact) if isinstance(facts, dict) else None for fact in ("size", "sha1"))
            if not isinstance(size, int) or not _SHA1.fullmatch(str(sha1)):
                raise DataError(f"{place}: file {name!r}: expected size and sha1, found {facts!r}")
            found.append((int(match[1] or 0), int(match[2] or 0), DumpPart(name, size, str(sha1))))
    return tuple(part for *_, part in sorted(found, key=lambda item: item[:2]))
