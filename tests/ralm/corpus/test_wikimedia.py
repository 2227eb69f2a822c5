"""Which dump a name means: states of the status file, listings, mirrors, and sites that misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ralm.corpus.wikimedia import UnfinishedError, find_dump, resolve_dump
from ralm.errors import ConfigError, DataError
from ralm.fetch import http
from ralm.fetch.http import UnreachableError
from ralm.fetch.mirrors import split_mirrors
from tests.dump_site import ARTICLES, DumpSite, Fault, export

LATEST = "wiki:enwiki/latest"
PAGES = export([(1, "Otter", "The otter swims.")])
FACTS = {"size": 3, "sha1": "a" * 40}
FILE = "enwiki-20261101-pages-articles-multistream.xml.bz2"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[DumpSite]:
    """With dumps of September (done) and October (done)."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.001)
    with DumpSite() as site:
        site.add_dump("enwiki", "20260901", [PAGES])
        site.add_dump("enwiki", "20261001", [PAGES])
        yield site


@pytest.fixture
def mirror() -> Iterator[DumpSite]:
    """A second site, with the dump of October."""
    with DumpSite() as site:
        site.add_dump("enwiki", "20261001", [PAGES])
        yield site


def test_the_newest_done_dump_is_the_latest(site: DumpSite) -> None:
    dump = find_dump(LATEST, site.url)
    assert (dump.wiki, dump.date, dump.passed_over) == ("enwiki", "20261001", ())
    assert list(dump.inputs) == ["enwiki-20261001-pages-articles-multistream1.xml-p1p10.bz2"]


@pytest.mark.parametrize(
    ("jobs", "reason"),
    [
        ({ARTICLES: {"status": "waiting"}}, "not done: .*waiting"),
        ({ARTICLES: {"status": "in-progress", "files": {FILE: FACTS}}}, "not done: .*in-progress"),
        ({ARTICLES: {"status": "failed"}}, "not done: .*failed"),
        ({}, "not done: .*absent"),
        ({ARTICLES: "done"}, "not done: .*absent"),
        ({ARTICLES: {"status": "done", "files": {}}}, "not done: .*done without articles"),
        ({ARTICLES: {"status": "done", "files": {"../" + FILE: FACTS}}}, "not done: .*done without articles"),
        ({ARTICLES: {"status": "done", "files": {FILE: {"size": 3}}}}, "expected size and sha1, found"),
        ({ARTICLES: {"status": "done", "files": {FILE: {**FACTS, "sha1": ""}}}}, "expected size and sha1, found"),
        ({ARTICLES: {"status": "done", "files": {FILE: {**FACTS, "size": "3"}}}}, "expected size and sha1, found"),
        ({ARTICLES: {"status": "done", "files": {FILE: "3"}}}, "expected size and sha1, found"),
        ([], "expected a JSON object with 'jobs'"),
    ],
)
def test_a_dump_that_is_not_done_is_passed_over(site: DumpSite, jobs: Any, reason: str) -> None:
    site.set_status("enwiki", "20261101", jobs)
    dump = find_dump(LATEST, site.url)
    assert dump.date == "20261001"
    (passed_over,) = dump.passed_over
    assert "20261101/dumpstatus.json" in passed_over
    with pytest.raises(DataError, match=f"20261101/dumpstatus.json: .*{reason}"):
        find_dump("wiki:enwiki/20261101", site.url)


@pytest.mark.parametrize("content", [b"", b'{"jobs": ', b"[]", b"\xff\xfe", b"null", b"<html>busy</html>"])
def test_a_malformed_status_is_passed_over_and_told(site: DumpSite, content: bytes) -> None:
    site.files["/enwiki/20261101/dumpstatus.json"] = content
    assert find_dump(LATEST, site.url).date == "20261001"
    with pytest.raises(DataError, match=r"20261101/dumpstatus.json: (no JSON|expected a JSON object with 'jobs')"):
        find_dump("wiki:enwiki/20261101", site.url)


def test_a_dump_without_a_status_file_is_waiting(site: DumpSite) -> None:
    site.files["/enwiki/20261101/report.json"] = b"{}"
    (passed_over,) = find_dump(LATEST, site.url).passed_over
    assert "404" in passed_over


def test_the_second_job_does_where_the_first_is_missing(site: DumpSite) -> None:
    name = "enwiki-20261101-pages-articles.xml.bz2"
    site.set_status("enwiki", "20261101", {"articlesdump": {"status": "done", "files": {name: FACTS}}})
    assert find_dump(LATEST, site.url).inputs == {name: FACTS["sha1"]}


def test_parts_come_in_the_order_of_their_pages(site: DumpSite) -> None:
    names = [f"enwiki-20261101-pages-articles-multistream{n}.xml-p{p}p9.bz2" for n, p in [(2, 40), (10, 90), (2, 7)]]
    site.set_status("enwiki", "20261101", {ARTICLES: {"status": "done", "files": dict.fromkeys(names, FACTS)}})
    assert [part.name for part in find_dump(LATEST, site.url).parts] == [names[2], names[0], names[1]]


def test_none_done_is_told_apart_from_none_there(site: DumpSite) -> None:
    for date in ("20260901", "20261001"):
        site.set_status("enwiki", date, {ARTICLES: {"status": "waiting"}})
    with pytest.raises(UnfinishedError, match=r"no finished article dump among \['20261001', '20260901'\].*waiting"):
        find_dump(LATEST, site.url)
    site.set_status("enwiki", "20261001", [])
    with pytest.raises(DataError, match="no finished article dump") as caught:
        find_dump(LATEST, site.url)
    assert not isinstance(caught.value, UnfinishedError)
    site.faults["/enwiki/"] = [Fault(body=b"<html>please log in</html>")]
    with pytest.raises(DataError, match=r"no finished article dump among \[\]") as caught:
        find_dump(LATEST, site.url)
    assert not isinstance(caught.value, UnfinishedError)
    with pytest.raises(DataError, match=r"/nowiki/: the server answered 404"):
        find_dump("wiki:nowiki/latest", site.url)


def test_a_listing_that_changes_at_equal_length_is_read_anew(site: DumpSite) -> None:
    """Listings have no version, and an old date that makes room for a new one leaves their size as it was."""
    assert resolve_dump(LATEST, site.url).date == "20261001"
    site.remove_dump("enwiki", "20260901")
    site.add_dump("enwiki", "20261101", [PAGES])
    assert resolve_dump(LATEST, site.url).date == "20261101"


def test_nothing_but_status_files_is_fetched(site: DumpSite) -> None:
    find_dump(LATEST, site.url)
    assert [path for _, path, _ in site.requests] == ["/enwiki/", "/enwiki/20261001/dumpstatus.json"]


@pytest.mark.parametrize("fault", [Fault(status=503, times=2), Fault(drop_after=20, times=2)])
def test_a_status_is_asked_for_again(site: DumpSite, fault: Fault) -> None:
    site.faults["/enwiki/20261001/dumpstatus.json"] = [fault]
    assert find_dump(LATEST, site.url).date == "20261001"


def test_an_older_dump_is_not_the_latest_because_the_site_fails(site: DumpSite) -> None:
    site.faults["/enwiki/20261001/dumpstatus.json"] = [Fault(status=502)]
    with pytest.raises(UnreachableError, match="20261001/dumpstatus.json: no answer from the server: 502"):
        find_dump(LATEST, site.url)
    site.faults["/enwiki/20261001/dumpstatus.json"] = [Fault(status=403)]
    with pytest.raises(DataError, match="20261001/dumpstatus.json: the server answered 403"):
        find_dump(LATEST, site.url)


def test_a_stalled_status_ends_in_time(site: DumpSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", "0.1")
    site.faults["/enwiki/"] = [Fault(stall_after=10)]
    with pytest.raises(UnreachableError, match=r"nothing came for 0.1 s, see RALM_HTTP_TIMEOUT_S"):
        find_dump(LATEST, site.url)


@pytest.mark.parametrize("manner", ["refused", "no answer", "listing 404", "listing 500", "status 404", "not done"])
def test_the_next_mirror_is_asked(site: DumpSite, mirror: DumpSite, manner: str) -> None:
    if manner == "refused":
        site.close()
    elif manner == "no answer":
        site.is_down = True
    elif manner.startswith("listing"):
        site.faults["/enwiki/"] = [Fault(status=int(manner[-3:]))]
    else:
        jobs = {ARTICLES: {"status": "in-progress"}}
        for date in ("20260901", "20261001"):
            site.remove_dump("enwiki", date)
            if manner == "not done":
                site.set_status("enwiki", date, jobs)
    dump = find_dump(LATEST, f"{site.url}, {mirror.url}/")
    assert dump.date == "20261001"
    assert dump.mirrors == (mirror.url, site.url)


def test_the_error_names_every_mirror_with_its_reason(site: DumpSite, mirror: DumpSite) -> None:
    site.is_down = True
    mirrors = f"{site.url},{mirror.url}"
    with pytest.raises(DataError, match=f"no mirror gives it: {site.url}.*no answer.*; {mirror.url}.*404"):
        find_dump("wiki:enwiki/20261201", mirrors)
    mirror.is_down = True
    with pytest.raises(UnreachableError, match=f"{site.url}.*no answer.*; {mirror.url}.*no answer"):
        find_dump("wiki:enwiki/20261201", mirrors)


def test_a_dump_found_before_serves_while_all_mirrors_are_down(site: DumpSite, mirror: DumpSite) -> None:
    mirrors = f"{site.url},{mirror.url}"
    found = resolve_dump(LATEST, mirrors)
    site.is_down = True
    assert resolve_dump(LATEST, mirrors).mirrors[0] == mirror.url
    mirror.is_down = True
    assert resolve_dump(LATEST, mirrors).inputs == found.inputs
    with pytest.raises(UnreachableError):
        find_dump(LATEST, mirrors)
    with pytest.raises(UnreachableError):
        resolve_dump("wiki:enwiki/20261001", mirrors)


def test_mirrors_are_urls_with_commas_between() -> None:
    assert split_mirrors(" https://a.example/x/ ,,http://b.example,https://a.example/x") == (
        "https://a.example/x",
        "http://b.example",
    )
    for text in ("", "a.example", "https://a.example,b.example"):
        with pytest.raises(ConfigError, match="wiki_base_url: expected URLs such as"):
            split_mirrors(text)


@pytest.mark.parametrize("source", ["wiki:enwiki", "wiki:enwiki/newest", "wiki:EN/latest", "wiki:enwiki/2026-08-01"])
def test_another_form_of_name_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="expected wiki:NAME/latest or wiki:NAME/YYYYMMDD"):
        find_dump(source, "http://unused")
