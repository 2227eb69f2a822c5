"""The download stage: outputs, reuse, kill and rerun, dump sites, bad input."""

from __future__ import annotations

import bz2
import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.download.config import DownloadConfig
from components.download.stage import download
from ralm.artifacts.manifest import open_artifact
from ralm.artifacts.tables import read_table
from ralm.corpus import build, parallel
from ralm.errors import ArtifactError, ConfigError, DataError

ROOT = Path(__file__).parents[3]
DUMP = ROOT / "tests" / "data" / "dump.xml"


class SlowHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; pauses after each block if the server says so."""

    def log_message(self, *args: object) -> None: ...

    def copyfile(self, source, outputfile) -> None:
        while block := source.read(2048):
            time.sleep(self.server.pause_s)
            outputfile.write(block)
            self.server.sent += len(block)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A web server of the folder `tmp_path/site`."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(SlowHandler, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.pause_s, server.sent = 0.0, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def add_dump(folder: Path, date: str, contents: list[bytes], status: str = "done") -> None:
    files = {}
    (folder / "enwiki" / date).mkdir(parents=True)
    for number, content in enumerate(contents, start=1):
        name = f"enwiki-{date}-pages-articles-multistream{number}.xml-p{number}p{number + 9}.bz2"
        (folder / "enwiki" / date / name).write_bytes(content)
        facts = {"size": len(content), "sha1": hashlib.sha1(content).hexdigest(), "url": f"/enwiki/{date}/{name}"}
        files[name] = facts
        files[name.replace(".xml", "-index.txt")] = {"size": 1, "sha1": "0"}
    jobs = {"articlesmultistreamdump": {"status": status, "files": files if status == "done" else {}}}
    (folder / "enwiki" / date / "dumpstatus.json").write_text(json.dumps({"version": "0.8", "jobs": jobs}))


def many_pages(count: int) -> bytes:
    head, _, rest = DUMP.read_text().partition("  <page>")
    page = "<page>" + rest.partition("  <page>")[0]
    pages = (page.replace("<id>1</id>", f"<id>{n}</id>").replace("Otter", f"Otter {n}") for n in range(1, count + 1))
    return (head + "".join(pages) + "</mediawiki>").encode()


def file_digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "timings.json"
    }


def test_dump_becomes_passages(tmp_path: Path) -> None:
    manifest = download(source=str(DUMP), passages=str(tmp_path / "p"))
    assert manifest.kind == "passages"
    assert manifest.counts == {
        "pages": 5,
        "articles": 2,
        "redirects": 1,
        "pages_of_other_namespaces": 1,
        "skipped_other_models": 1,
        "passages": 7,
        "text_passages": 6,
        "infobox_passages": 1,
        "repeated_passages": 0,
    }
    rows = read_table(str(tmp_path / "p" / "part-00000.parquet"), "passages/1").to_pylist()
    by_section = {row["section"]: row["text"] for row in rows if row["kind"] == "text" and row["title"] == "Otter"}
    assert by_section == {
        "": "The otter is a mammal of the family Mustelidae. It lives near rivers – and in the sea. It weighs 8 kg.",
        "Food": "Otters eat fish, crabs and frogs. Dr. J. R. Brook counted 3.5 fish an hour.\nTrouts in winter\n"
        "Crabs in summer and autumn",
        "Food: Young": "The young eat first. See a film.",
    }
    box = next(row for row in rows if row["kind"] == "infobox")
    assert box["text"] == "name: Otter\nfamily: Mustelidae\nlength: 1.2 m\nfirst described: 1758-1-1"
    assert {row["page_id"] for row in rows} == {1, 4}
    assert download(source=str(DUMP), passages=str(tmp_path / "q")).reused


def test_equal_bytes_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PART_ROWS", 500)
    monkeypatch.setattr("ralm.corpus.formats.BATCH_CHARS", 20_000)
    (tmp_path / "dump.xml").write_bytes(many_pages(400))
    digests = []
    for workers in (1, 3):
        monkeypatch.setenv("RALM_HOME", str(tmp_path / f"home{workers}"))
        folder = tmp_path / f"p{workers}"
        config = DownloadConfig(workers=workers)
        manifest = download(source=str(tmp_path / "dump.xml"), passages=str(folder), config=config)
        assert manifest.counts["articles"] == 400
        digests.append(file_digests(folder))
    assert digests[0] == digests[1]
    assert len(digests[0]) > 3


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_passages_alone(tmp_path: Path, workers: int) -> None:
    """However far the workers have read ahead, the artifact is the same."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": str(n), "title": f"Page {n}", "text": f"Sentence number {n}. " * 40} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = download(source=str(path), passages=str(tmp_path / "whole"))
    config = DownloadConfig(max_passages=7, workers=workers)
    part = download(source=str(path), passages=str(tmp_path / "part"), config=config)
    assert whole.counts["passages"] > 7
    assert part.counts == {"passages": 7, "text_passages": 7, "infobox_passages": 0, "repeated_passages": 0}
    first, found = (open_artifact(str(tmp_path / name), "passages").tables()[0][0] for name in ("whole", "part"))
    assert read_table(found, "passages/1").to_pylist() == read_table(first, "passages/1").to_pylist()[:7]
    more = DownloadConfig(max_passages=100_000)
    assert download(source=str(path), passages=str(tmp_path / "more"), config=more).counts == whole.counts


def test_equal_passages_get_ids_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PART_ROWS", 4)
    rows = [{"id": "1", "title": "T", "section": "", "text": "same"}] * 6 + [
        {"id": "2", "title": "T", "section": "", "text": "same"}
    ]
    path = tmp_path / "atlas.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = download(source=str(path), passages=str(tmp_path / "p"))
    assert manifest.counts["repeated_passages"] == 5
    parts = [str(tmp_path / "p" / f"part-0000{number}.parquet") for number in range(2)]
    table = read_table(parts, "passages/1")
    assert len(set(table.column("passage_id").to_pylist())) == 7


def test_kill_and_run_again_gives_the_same_bytes(tmp_path: Path, site) -> None:
    add_dump(tmp_path / "site", "20260801", [bz2.compress(many_pages(1000)), bz2.compress(DUMP.read_bytes())])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RALM_WIKI_BASE_URL": site.url}

    def start(home: str, output: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "components.download", "--source", "wiki:enwiki/latest", "--passages"]
        return subprocess.Popen(
            [*command, str(tmp_path / output)], env={**environment, "RALM_HOME": str(tmp_path / home)}
        )

    site.pause_s = 0.2
    process = start("home1", "killed")
    deadline = time.monotonic() + 60
    while site.sent < 6000 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    site.pause_s = 0.0
    assert start("home1", "killed").wait() == 0
    assert start("home2", "whole").wait() == 0
    assert file_digests(tmp_path / "killed") == file_digests(tmp_path / "whole")


def test_latest_is_the_newest_finished_dump(tmp_path: Path, site) -> None:
    add_dump(tmp_path / "site", "20260701", [b"old"])
    add_dump(tmp_path / "site", "20260801", [bz2.compress(DUMP.read_bytes()), bz2.compress(many_pages(3))])
    add_dump(tmp_path / "site", "20260901", [b""], status="in-progress")
    config = DownloadConfig(wiki_base_url=site.url)
    manifest = download(source="wiki:enwiki/latest", passages=str(tmp_path / "p"), config=config)
    assert {"wiki": "enwiki", "date": "20260801"}.items() <= manifest.details.items()
    assert len(manifest.inputs) == 2
    assert manifest.counts["articles"] == 5
    assert manifest.counts["repeated_passages"] == 2  # of page 1, which is in both parts
    assert download(source="wiki:enwiki/20260801", passages=str(tmp_path / "q"), config=config).reused
    with pytest.raises(DataError, match=r"20260901/dumpstatus.json: the article dump is not done"):
        download(source="wiki:enwiki/20260901", passages=str(tmp_path / "r"), config=config)
    with pytest.raises(DataError, match="20250101"):
        download(source="wiki:enwiki/20250101", passages=str(tmp_path / "r"), config=config)


def test_wrong_checksum_is_refused(tmp_path: Path, site) -> None:
    add_dump(tmp_path / "site", "20260801", [bz2.compress(DUMP.read_bytes())])
    part = next((tmp_path / "site" / "enwiki" / "20260801").glob("*.bz2"))
    content = bytearray(part.read_bytes())
    content[50] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match="sha1"):
        download(
            source="wiki:enwiki/20260801", passages=str(tmp_path / "p"), config=DownloadConfig(wiki_base_url=site.url)
        )
    assert not (tmp_path / "p" / "manifest.json").exists()


def test_name_of_a_file_is_part_of_its_identity(tmp_path: Path) -> None:
    for name in ("tea.txt", "milk.txt"):
        (tmp_path / name).write_text("A drink.")
        assert not download(source=str(tmp_path / name), passages=str(tmp_path / "p")).reused
    rows = read_table(str(tmp_path / "p" / "part-00000.parquet"), "passages/1").to_pylist()
    assert [row["title"] for row in rows] == ["milk"]


def test_own_documents_are_cut_and_a_folder_works(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "long.md").write_text("# Long\n" + "This sentence has about eight words in it. " * 100)
    manifest = download(source=str(tmp_path / "docs"), passages=str(tmp_path / "p"))
    assert 5 <= manifest.counts["passages"] <= 14
    assert manifest.counts["files"] == 1


def test_exactly_one_output(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one of --passages, --questions and --model, found none"):
        download(source="x")
    with pytest.raises(ConfigError, match="found --passages and --questions"):
        download(source="x", passages="a", questions="b")
    with pytest.raises(ConfigError, match="no source"):
        download(passages="a")
    with pytest.raises(ConfigError, match="--retriever and --reader go with --model"):
        download(source="x", passages="a", reader="r")


def test_a_dead_worker_is_an_error() -> None:
    with pytest.raises(DataError, match="a worker process died"):
        list(parallel.map_ordered(os._exit, range(1, 20), 2))


def test_order_and_bound_of_the_parallel_map() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    results = parallel.map_ordered(str, items(), 2)
    assert next(results) == "0"
    assert len(taken) <= 12
    assert list(results) == [str(number) for number in range(1, 50)]


@pytest.mark.slow
def test_memory_is_bounded_on_a_real_dump(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "wiki" / "enwiki-20060303-part.xml.bz2"
    script = (
        "import resource, sys\nfrom components.download.stage import download\n"
        "if __name__ == '__main__':\n"
        f"    manifest = download(source={str(source)!r}, passages={str(tmp_path / 'p')!r})\n"
        "    assert manifest.counts['pages'] == 3110, manifest.counts\n"
        # VmHWM begins anew at exec; ru_maxrss of the process itself would count the test runner it was forked from.
        "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "    print(status['VmHWM'].split()[0], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")], env=environment, capture_output=True, text=True, check=True
    )
    parent_mib, worker_mib = (int(value) / 1024 for value in done.stdout.split())
    assert parent_mib < 500
    assert worker_mib < 500


def test_output_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("x")
    with pytest.raises(ArtifactError):
        download(source=str(DUMP), passages=str(tmp_path / "p"))
