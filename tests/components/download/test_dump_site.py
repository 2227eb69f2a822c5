"""The download stage against a dump site that misbehaves: whole and right, or nothing at all."""

from __future__ import annotations

import bz2
import dataclasses
import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.manifest import MANIFEST, Manifest
from ralm.errors import ConfigError, DataError, RalmError
from ralm.fetch import http
from ralm.fetch.http import UnreachableError
from tests.dump_site import DumpSite, Fault, export

FIRST = export([(1, "Otter", "The otter swims in rivers."), (2, "Willow", "The willow grows near water.")])
SECOND = export([(3, "Copper", f"Copper is a metal. {' '.join(map(str, range(3000)))}")])
DUMP = "/enwiki/20261001/"
Download = Callable[..., Manifest]


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DumpSite, DumpSite]]:
    """Two mirrors with the same dump of two parts; waiting between attempts is cut to nothing."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.001)
    with DumpSite() as first, DumpSite() as second:
        for site in (first, second):
            site.add_dump("enwiki", "20261001", [FIRST, SECOND])
        yield first, second


@pytest.fixture
def site(sites: tuple[DumpSite, DumpSite]) -> DumpSite:
    return sites[0]


@pytest.fixture
def fetch(tmp_path: Path) -> Download:
    """Run the stage on the dump of October, on the given sites in this order."""

    def run(*sites: DumpSite, source: str = "wiki:enwiki/20261001") -> Manifest:
        config = DownloadConfig(wiki_base_url=",".join(site.url for site in sites), workers=1)
        return download(source=source, passages=str(tmp_path / "passages"), config=config)

    return run


def parts_of(site: DumpSite) -> list[str]:
    return sorted(path for path in site.files if path.endswith(".bz2"))


def cached_parts(home: Path) -> list[Path]:
    return sorted(path for path in (home / "cache" / "downloads" / "url").rglob("*.bz2") if path.is_file())


def assert_nothing_is_published(home: Path, tmp_path: Path) -> None:
    assert list((home / "store").glob(f"passages/*/{MANIFEST}")) == []
    assert not (tmp_path / "passages" / MANIFEST).exists()


def damaged(content: bytes) -> bytes:
    return content[:50] + bytes([content[50] ^ 1]) + content[51:]


def test_a_wrong_checksum_is_made_good_by_the_next_mirror(
    sites: tuple[DumpSite, DumpSite], fetch: Download, ralm_home: Path
) -> None:
    first, second = sites
    _, path = parts_of(first)
    first.faults[path] = [Fault(body=damaged(first.files[path]))]
    manifest = fetch(first, second)
    assert manifest.counts["articles"] == 3
    assert [len(second.gets(part)) for part in parts_of(second)] == [0, 1]
    for part in cached_parts(ralm_home):
        assert hashlib.sha1(part.read_bytes()).hexdigest() == manifest.inputs[part.name]


def test_wrong_checksums_everywhere_leave_nothing_and_a_repair_is_enough(
    sites: tuple[DumpSite, DumpSite], fetch: Download, ralm_home: Path, tmp_path: Path
) -> None:
    first, second = sites
    good, path = parts_of(first)
    for site in sites:
        site.faults[path] = [Fault(body=damaged(site.files[path]))]
    reasons = "; ".join(f"{site.url}{path}: expected sha1 .*, found .*; the download was thrown away" for site in sites)
    for _ in range(2):  # a second run trusts nothing that the first one left
        with pytest.raises(DataError, match=f"{path.rpartition('/')[2]}: no mirror gives it: {reasons}"):
            fetch(first, second)
    assert_nothing_is_published(ralm_home, tmp_path)
    assert [f"{DUMP}{part.name}" for part in cached_parts(ralm_home)] == [good]
    assert list(ralm_home.rglob("*.part")) == []
    second.faults.clear()
    assert fetch(first, second).counts["articles"] == 3
    assert len(first.gets(good)) == 1  # the part that was right came once


@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"", b"x" * 200_000])
def test_another_content_or_size_is_refused(
    site: DumpSite, fetch: Download, ralm_home: Path, tmp_path: Path, body: bytes
) -> None:
    site.faults[parts_of(site)[0]] = [Fault(body=body)]
    with pytest.raises(DataError, match="expected .* found .*; the download was thrown away"):
        fetch(site)
    assert_nothing_is_published(ralm_home, tmp_path)
    assert cached_parts(ralm_home) == []


def test_an_endless_part_is_given_up_at_its_size(
    site: DumpSite, fetch: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BLOCK_BYTES", 1024)
    site.faults[parts_of(site)[0]] = [Fault(body=b"x" * (1 << 24), pause_s=0.0001)]
    started_at = time.monotonic()
    with pytest.raises(DataError, match=r"expected \d+ bytes, found more"):
        fetch(site)
    assert time.monotonic() - started_at < 5


def test_a_dropped_connection_is_resumed(site: DumpSite, fetch: Download) -> None:
    path = parts_of(site)[1]
    site.faults[path] = [Fault(drop_after=500, times=2)]
    assert fetch(site).counts["articles"] == 3
    assert site.gets(path) == ["", "bytes=500-", "bytes=1000-"]


@pytest.mark.parametrize("lacking", ["has_ranges", "has_versions"])
def test_a_site_without_ranges_or_versions_sends_it_all_again(site: DumpSite, fetch: Download, lacking: str) -> None:
    setattr(site, lacking, False)
    path = parts_of(site)[1]
    site.faults[path] = [Fault(drop_after=500, times=2)]
    assert fetch(site).counts["articles"] == 3
    assert len(site.gets(path)) == 3


def test_a_run_that_gave_up_is_gone_on_with(
    site: DumpSite, fetch: Download, ralm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    path = parts_of(site)[1]
    site.faults[path] = [Fault(drop_after=500, times=1), Fault(drop_after=0)]
    with pytest.raises(DataError, match="500 bytes kept; run the same command again to go on"):
        fetch(site)
    assert_nothing_is_published(ralm_home, tmp_path)
    site.faults.clear()
    site.requests.clear()
    assert fetch(site).counts["articles"] == 3
    assert site.gets(".bz2") == ["bytes=500-"]


def test_what_one_mirror_began_another_does_not_go_on_with(
    sites: tuple[DumpSite, DumpSite], fetch: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning may be wrong: together with a right rest it would spoil the mirror that is right."""
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    first, second = sites
    path = parts_of(first)[1]
    first.faults[path] = [Fault(drop_after=500, times=1), Fault(drop_after=0)]
    assert fetch(first, second).counts["articles"] == 3
    assert second.gets(path) == [""]


def test_a_mirror_that_failed_is_asked_last_for_the_rest(
    sites: tuple[DumpSite, DumpSite], fetch: Download, ralm_home: Path
) -> None:
    first, second = sites
    first.down_after = f"{DUMP}dumpstatus.json"
    assert fetch(first, second).counts["articles"] == 3
    assert len(first.gets(".bz2")) == http.MAX_ATTEMPTS  # for the first part alone
    assert len(second.gets(".bz2")) == 2
    assert len(cached_parts(ralm_home)) == 2


def test_other_order_of_mirrors_downloads_nothing_again(
    sites: tuple[DumpSite, DumpSite], fetch: Download, ralm_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = sites
    found = fetch(first, second)
    monkeypatch.setenv("RALM_STORE_URI", str(tmp_path / "empty-store"))
    again = fetch(second, first)
    assert (again.fingerprint, again.reused) == (found.fingerprint, False)
    assert second.gets(".bz2") == []
    assert len(first.gets(".bz2")) == 2


def test_a_part_cut_short_on_disk_is_fetched_again(
    site: DumpSite, fetch: Download, ralm_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetch(site)
    cached = cached_parts(ralm_home)[1]
    whole = cached.read_bytes()
    cached.write_bytes(whole[:100])
    monkeypatch.setenv("RALM_STORE_URI", str(tmp_path / "empty-store"))
    assert fetch(site).counts["articles"] == 3
    assert cached.read_bytes() == whole


def test_a_slow_site_is_waited_for(site: DumpSite, fetch: Download, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs longer than the time-out, but something comes all the time."""
    monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", "0.3")
    path = parts_of(site)[1]
    site.faults[path] = [Fault(pause_s=0.02)]
    started_at = time.monotonic()
    assert fetch(site).counts["articles"] == 3
    assert time.monotonic() - started_at > 0.6
    assert site.gets(path) == [""]


def test_what_a_slow_site_sent_is_kept_when_it_drops(site: DumpSite, fetch: Download) -> None:
    path = parts_of(site)[1]
    site.faults[path] = [Fault(pause_s=0.001, drop_after=700, times=1)]
    assert fetch(site).counts["articles"] == 3
    assert site.gets(path) == ["", "bytes=700-"]


def test_a_stalled_site_ends_in_time_and_keeps_what_came(
    site: DumpSite, fetch: Download, ralm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", "0.2")
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    path = parts_of(site)[1]
    site.faults[path] = [Fault(stall_after=300, times=3), Fault(stall_after=0)]
    started_at = time.monotonic()
    with pytest.raises(DataError, match=r"the connection broke \(nothing came for 0.2 s, see RALM_HTTP_TIMEOUT_S\)"):
        fetch(site)
    assert time.monotonic() - started_at < 10
    (part,) = ralm_home.rglob("*.part")
    assert part.stat().st_size == 900


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_time_out_is_a_positive_number(
    site: DumpSite, fetch: Download, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", text)
    with pytest.raises(ConfigError, match=f"RALM_HTTP_TIMEOUT_S: expected seconds, a positive number, found '{text}'"):
        fetch(site)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("place", ["status", "part"])
def test_a_busy_site_is_left_alone_as_long_as_it_asks(site: DumpSite, fetch: Download, status: int, place: str) -> None:
    path = parts_of(site)[0] if place == "part" else f"{DUMP}dumpstatus.json"
    site.faults[path] = [Fault(status=status, retry_after="1", times=1)]
    started_at = time.monotonic()
    assert fetch(site).counts["articles"] == 3
    assert time.monotonic() - started_at >= 1


def test_retry_after_may_be_a_date(site: DumpSite, fetch: Download) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    site.faults[parts_of(site)[0]] = [Fault(status=503, retry_after=date, times=1)]
    started_at = time.monotonic()
    fetch(site)
    assert 0.5 < time.monotonic() - started_at < 10  # whole seconds in the header


def test_a_site_that_wants_to_be_left_alone_for_long_is_given_up(
    sites: tuple[DumpSite, DumpSite], fetch: Download
) -> None:
    first, second = sites
    busy = Fault(status=429, retry_after="3600")
    first.faults = {path: [busy] for path in parts_of(first)}
    started_at = time.monotonic()
    with pytest.raises(DataError, match="429 .* asks to be left alone for 3600 s; gave up after 1 attempts"):
        fetch(first)
    assert fetch(first, second).counts["articles"] == 3
    first.faults = {"/enwiki/": [busy]}
    with pytest.raises(UnreachableError, match="429 .* and asks to be left alone for 3600 s"):
        fetch(first, source="wiki:enwiki/latest")
    assert time.monotonic() - started_at < 5


def test_a_site_down_between_status_and_parts(site: DumpSite, fetch: Download, ralm_home: Path, tmp_path: Path) -> None:
    site.down_after = f"{DUMP}dumpstatus.json"
    with pytest.raises(DataError, match=f"{site.url}{parts_of(site)[0]}: no answer from the server"):
        fetch(site)
    assert_nothing_is_published(ralm_home, tmp_path)
    site.down_after, site.is_down = "", False
    assert fetch(site).counts["articles"] == 3


def test_a_dump_that_disappears(
    sites: tuple[DumpSite, DumpSite], fetch: Download, ralm_home: Path, tmp_path: Path
) -> None:
    first, second = sites
    status = first.files[f"{DUMP}dumpstatus.json"]
    for site in sites:
        site.remove_dump("enwiki", "20261001")
    with pytest.raises(DataError, match="no mirror gives it: .*404.*; .*404"):
        fetch(first, second)
    first.files[f"{DUMP}dumpstatus.json"] = status  # the parts went first
    with pytest.raises(DataError, match="no mirror gives it: .*404.*; .*404"):
        fetch(first, second)
    assert_nothing_is_published(ralm_home, tmp_path)
    assert len(first.gets(".bz2")) == 1  # 404 is no reason to ask again


def test_a_dump_whose_text_breaks_off_publishes_nothing(
    site: DumpSite, fetch: Download, ralm_home: Path, tmp_path: Path
) -> None:
    """Its checksum is right: the dump itself is broken."""
    site.add_dump("enwiki", "20261001", [FIRST, SECOND[:200]])
    with pytest.raises(DataError, match="malformed XML"):
        fetch(site)
    assert_nothing_is_published(ralm_home, tmp_path)
    site.add_dump("enwiki", "20261001", [FIRST, SECOND])
    assert fetch(site).counts["articles"] == 3


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_on_the_way_the_passages_are_the_same(
    sites: tuple[DumpSite, DumpSite],
    fetch: Download,
    ralm_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seed: int,
) -> None:
    """A few faults in a row for every file of both mirrors; the same run is started until it gets through."""
    expected = fetch(sites[0]).fingerprint
    shutil.rmtree(tmp_path / "passages")
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RALM_HTTP_TIMEOUT_S", "0.2")
    draw = random.Random(seed)
    for site in sites:
        site.has_ranges, site.has_versions = draw.random() < 0.7, draw.random() < 0.7
        for path, content in site.files.items():
            place = draw.randrange(len(content))
            kinds = [
                Fault(drop_after=place),
                Fault(body=content[:place]),
                Fault(status=draw.choice([404, 403, 500, 503])),
                Fault(stall_after=place),
            ]
            if path.endswith(".bz2"):  # a status file has no checksum
                kinds.append(Fault(body=content[:place] + b"?" + content[place + 1 :]))
            site.faults[path] = [dataclasses.replace(draw.choice(kinds), times=1) for _ in range(draw.randrange(4))]
    for _ in range(20):
        try:
            found = fetch(*sites, source="wiki:enwiki/latest")
            break
        except RalmError:
            assert_nothing_is_published(tmp_path / "home", tmp_path)
    else:
        pytest.fail("20 runs did not get through")
    assert (found.fingerprint, found.reused) == (expected, False)


def test_the_parts_of_the_test_site_are_real(site: DumpSite) -> None:
    assert bz2.decompress(site.files[parts_of(site)[0]]) == FIRST
