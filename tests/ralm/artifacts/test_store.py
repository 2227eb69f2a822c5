"""The store: reuse, atomic publishing, hand-over, and what happens when the builder dies."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ralm.artifacts.files import sha256_file
from ralm.artifacts.manifest import Manifest, open_artifact, read_artifact
from ralm.artifacts.store import Contents, handing_over_by_reference, produce, stored_location
from ralm.errors import ArtifactError


def make(output: Path, *, text: str = "content", config: dict | None = None, inputs: dict | None = None) -> Manifest:
    def build(folder: Path) -> Contents:
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(text)
        return Contents(counts={"things": 1}, details={"size": len(text)}, timings={"rate": 1.0})

    return produce(
        str(output), kind="thing", stage="make", stage_version=1, inputs=inputs or {}, config=config or {}, build=build
    )


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


def test_same_inputs_and_config_are_reused(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b", text="never written: the key is the same")
    assert (first.reused, second.reused) == (False, True)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert (tmp_path / "b" / "sub" / "file.txt").read_text() == "content"


@pytest.mark.parametrize("change", [{"config": {"a": 1}}, {"inputs": {"passages": "f" * 64}}])
def test_other_config_or_inputs_are_built(tmp_path: Path, change: dict) -> None:
    make(tmp_path / "a")
    assert not make(tmp_path / "b", **change).reused


def test_manifest_is_equal_in_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a")
    monkeypatch.setenv("RALM_HOME", str(tmp_path / "other"))
    make(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_failed_build_publishes_nothing_and_keeps_the_earlier_output(tmp_path: Path, ralm_home: Path) -> None:
    make(tmp_path / "out")
    before = files_of(tmp_path / "out")

    def build(folder: Path) -> Contents:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        produce(str(tmp_path / "out"), kind="thing", stage="make", stage_version=2, inputs={}, config={}, build=build)
    assert files_of(tmp_path / "out") == before
    assert not list((ralm_home / "store" / ".work").iterdir())


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def build(folder: Path) -> Contents:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="disk full while making thing"):
        produce(str(tmp_path / "o"), kind="thing", stage="s", stage_version=1, inputs={}, config={}, build=build)
    assert not (tmp_path / "o").exists()


def test_an_output_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds files that are no artifact"):
        make(tmp_path)
    assert files_of(tmp_path) == {"precious.txt": sha256_file(tmp_path / "precious.txt")}


def test_a_new_artifact_replaces_the_old_one_in_the_output(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("kept")
    make(tmp_path / "out", text="newer", config={"a": 2})
    assert (tmp_path / "out" / "sub" / "file.txt").read_text() == "newer"
    assert (tmp_path / "out" / "notes.txt").read_text() == "kept"


def test_a_broken_hand_over_can_be_repeated(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / ".ralm-unfinished").touch()
    assert make(tmp_path / "out").reused
    open_artifact(str(tmp_path / "out"), "thing")


def test_hand_over_by_reference_is_a_manifest_only(tmp_path: Path) -> None:
    with handing_over_by_reference():
        manifest = make(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    artifact = open_artifact(str(tmp_path / "out"), "thing")
    assert artifact.base == stored_location(manifest)
    assert artifact.local("sub/file.txt").read_text() == "content"
    assert artifact.fingerprint == manifest.fingerprint


def test_a_damaged_store_entry_is_made_again(tmp_path: Path) -> None:
    stored = Path(stored_location(make(tmp_path / "a"))) / "sub" / "file.txt"
    stored.unlink()
    stored.write_text("shorter")
    stored.write_text("x")
    assert not make(tmp_path / "b").reused
    assert stored.read_text() == "content"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "unfinished: it has no manifest.json"),
        (lambda folder: (folder / "sub" / "file.txt").unlink(), "damaged: sub/file.txt is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "line 1 column 2: no JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": []}'), "no valid manifest"),
    ],
)
def test_opening_says_what_is_wrong(tmp_path: Path, spoil, message: str) -> None:
    make(tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(ArtifactError, match=message):
        open_artifact(str(tmp_path / "out"), "thing")


def test_opening_another_kind_or_nothing(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ArtifactError, match="expected a model artifact, found a thing artifact"):
        open_artifact(str(tmp_path / "out"), "model")
    with pytest.raises(ArtifactError, match="no such artifact"):
        open_artifact(str(tmp_path / "nowhere"), "model")


def test_a_tampered_manifest_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out")
    place = tmp_path / "out" / "manifest.json"
    place.write_text(place.read_text().replace('"size": 7', '"size": 8'))
    with pytest.raises(ArtifactError, match="fingerprint"):
        read_artifact(str(tmp_path / "out"))


SLOW_BUILD = """
import sys, time
from pathlib import Path
from ralm.artifacts.store import Contents, produce
def build(folder):
    (folder / "a.txt").write_text("a")
    Path(sys.argv[2]).touch()
    time.sleep(float(sys.argv[3]))
    (folder / "b.txt").write_text("b")
    return Contents()
print(produce(sys.argv[1], kind="thing", stage="slow", stage_version=1, inputs={}, config={}, build=build).reused)
"""


def start(output: Path, flag: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_BUILD, str(output), str(flag), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def wait_for(flag: Path) -> None:
    deadline = time.monotonic() + 30
    while not flag.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_in_the_middle_then_the_same_again(tmp_path: Path) -> None:
    process = start(tmp_path / "out", tmp_path / "flag", 60)
    wait_for(tmp_path / "flag")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    again = start(tmp_path / "out", tmp_path / "flag2", 0)
    assert again.communicate(timeout=30)[0].strip() == "False"
    assert set(files_of(tmp_path / "out")) == {"a.txt", "b.txt", "manifest.json"}


def test_two_at_once_build_once(tmp_path: Path) -> None:
    first = start(tmp_path / "one", tmp_path / "flag", 1)
    wait_for(tmp_path / "flag")
    second = start(tmp_path / "two", tmp_path / "flag2", 0)
    assert first.communicate(timeout=30)[0].strip() == "False"
    assert second.communicate(timeout=30)[0].strip() == "True"
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_two_machines_with_one_local_store_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALM_STORE_URI", str(tmp_path / "store"))
    processes = []
    for name in ("a", "b"):
        monkeypatch.setenv("RALM_HOME", str(tmp_path / f"home {name}"))
        processes.append(start(tmp_path / name, tmp_path / "flag", 1.0))
    assert sorted(process.communicate(timeout=60)[0].strip() for process in processes) == ["False", "True"]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_times_are_outside_the_manifest(tmp_path: Path) -> None:
    make(tmp_path / "out")
    timings = json.loads((tmp_path / "out" / "timings.json").read_text())
    assert timings["rate"] == 1.0
    assert "elapsed_s" in timings
    assert "timings.json" not in (tmp_path / "out" / "manifest.json").read_text()
