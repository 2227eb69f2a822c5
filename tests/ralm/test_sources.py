from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from ralm.errors import ConfigError, DataError
from ralm.fetch import pypi
from ralm.fetch.assets import assets
from ralm.sources import bundle_parts, fetch_file, fetch_tree, source_digest


def write_wheel(folder: Path, files: dict[str, bytes]) -> None:
    info = "toy_data-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "toy_data-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in {**files, **metadata}.items():
            wheel.writestr(name, data)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index."""
    pytest.importorskip("pip")
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    write_wheel(folder, {"toy_data/a.txt": b"one", "toy_data/more/b.txt": b"two", "toy_data/../../evil.txt": b"no"})
    return folder


def test_a_file_inside_a_package(wheels: Path) -> None:
    source = "pypi://toy-data==1.0!toy_data/a.txt"
    path = fetch_file(source, sha256=hashlib.sha256(b"one").hexdigest())
    assert path.read_bytes() == b"one"
    (wheels / "toy_data-1.0-py3-none-any.whl").unlink()
    assert fetch_file(source) == path
    with pytest.raises(DataError, match="expected md5 0, found"):
        fetch_file(source, md5="0")


def test_a_folder_inside_a_package_does_not_leave_its_place(wheels: Path, ralm_home: Path) -> None:
    tree = fetch_tree("pypi://toy-data==1.0!toy_data/")
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert files == {"a.txt": b"one", "more/b.txt": b"two"}
    assert not list(ralm_home.rglob("evil.txt"))


def test_without_a_connection_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"CONFIG_FILE": os.devnull, "INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1", "NO_INDEX": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        DataError, match=r"toy-data==1.0: pip could not fetch it \(no connection to the package index\)"
    ):
        fetch_file("pypi://toy-data==1.0!toy_data/a.txt")


def test_missing_packages_and_paths(wheels: Path, ralm_home: Path) -> None:
    with pytest.raises(DataError, match=r"no path toy_data/c.txt in toy_data-1.0-py3-none-any.whl$"):
        fetch_file("pypi://toy-data==1.0!toy_data/c.txt")
    with pytest.raises(DataError, match=r"toy-data==2.0: pip could not fetch it: ERROR"):
        fetch_file("pypi://toy-data==2.0!toy_data/a.txt")
    leftovers = [path for path in (ralm_home / "cache" / "downloads" / "pypi").rglob("*") if path.is_file()]
    assert leftovers == []


@pytest.mark.parametrize(("version", "option"), [("23.2.1", "off"), ("24.1", "raw"), ("25.0.dev1", "raw")])
def test_old_pip_has_no_readable_progress(monkeypatch: pytest.MonkeyPatch, version: str, option: str) -> None:
    monkeypatch.setattr(pypi.metadata, "version", lambda _: version)
    assert pypi._progress_option() == option


def test_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise pypi.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(pypi.metadata, "version", missing)
    with pytest.raises(DataError, match="-m ensurepip"):
        fetch_file("pypi://toy-data==1.0!toy_data/a.txt")


def test_pinned_checksums_of_inner_files(wheels: Path, tmp_path: Path) -> None:
    right = hashlib.sha256(b"one").hexdigest()
    target = tmp_path / "target"
    with pytest.raises(DataError, match=r"a.txt: expected sha256 00, found"):
        pypi.fetch_package_files("pypi://toy-data==1.0!toy_data/", target, {"a.txt": "00"})
    assert not target.exists()
    pypi.fetch_package_files("pypi://toy-data==1.0!toy_data/", target, {"a.txt": right})
    assert [path.name for path in target.iterdir()] == ["a.txt"]


def pip_with(archives: dict[str, Path]) -> Callable[[list[str]], str]:
    """A pip that finds a wheel, an sdist, or both."""

    def run(options: list[str]) -> str:
        found = archives.get("wheel" if "--only-binary=:all:" in options else "sdist")
        if found is not None:
            folder = Path(options[options.index("--dest") + 1])
            folder.mkdir(exist_ok=True)
            shutil.copy(found, folder)
        return ""

    return run


@pytest.mark.parametrize("has_wheel", [False, True], ids=["alone", "beside a wheel without the file"])
def test_an_sdist_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_wheel: bool) -> None:
    archives = {"sdist": tmp_path / "toy_data-1.0.tar.gz"}
    with tarfile.open(archives["sdist"], "w:gz") as sdist:
        for name in ("toy_data-1.0/src/toy_data/a.txt", "toy_data-1.0/../evil.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            sdist.addfile(member, io.BytesIO(b"one"))
        link = tarfile.TarInfo("toy_data-1.0/src/toy_data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        sdist.addfile(link)
    if has_wheel:
        write_wheel(tmp_path, {"other.txt": b"two"})
        archives["wheel"] = tmp_path / "toy_data-1.0-py3-none-any.whl"
    monkeypatch.setattr(pypi, "_run_pip", pip_with(archives))
    tree = fetch_tree("pypi://toy-data==1.0!toy_data/")
    assert [path.name for path in tree.iterdir()] == ["a.txt"]
    with pytest.raises(DataError, match=r"no path toy_data/b.txt in toy_data-1.0"):
        fetch_file("pypi://toy-data==1.0!toy_data/b.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi://toy-data!a.txt", "expected pypi://name==version!path/inside"),
        ("pypi://toy==1.0!../a.txt", "must not be absolute"),
        ("pypi://toy==1.0!folder/", "expected a file, found a folder"),
        ("hf://only-a-name", "expected hf://owner/name"),
        ("hf://owner/name", "expected a file, hf://"),
        ("asset:nothing", "unknown asset; assets.yaml has enwiki-2016-slice"),
        ("asset:quickstart", "a bundle of asset:minilm"),
    ],
)
def test_sources_that_are_not_well_formed(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fetch_file(source)


def test_a_file_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="asset:enwiki-2016-slice: expected a folder, found a file"):
        fetch_tree("asset:enwiki-2016-slice")
    with pytest.raises(ConfigError, match="a folder inside a package ends in /"):
        fetch_tree("pypi://toy==1.0!a.txt")


def test_local_paths(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one")
    assert fetch_file(str(file)) == file
    assert fetch_tree(f"file://{tmp_path}") == tmp_path
    assert source_digest(str(file)) == hashlib.sha256(b"one").hexdigest()
    folder = source_digest(str(tmp_path))
    file.write_bytes(b"two")
    assert source_digest(str(tmp_path)) != folder
    for fetch, place in ((fetch_file, tmp_path), (fetch_file, tmp_path / "b"), (fetch_tree, file)):
        with pytest.raises(DataError, match="expected a f"):
            fetch(str(place))


def test_every_asset_is_pinned_and_licensed() -> None:
    for asset in assets().values():
        assert asset.description
        assert asset.licence
        if asset.parts:
            assert all(part.removeprefix("asset:") in assets() for part in asset.parts.values())
            continue
        pypi.PackageFile.parse(asset.source)
        assert asset.sha256
        assert all(len(digest) == 64 for digest in asset.sha256.values())
    assert bundle_parts("asset:quickstart") == {"retriever": "asset:minilm", "reader": "asset:flan-t5-small-titles"}
    assert bundle_parts("some/folder") == {}
    assert source_digest("asset:quickstart") != source_digest("asset:minilm")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An object store bucket on this machine."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="corpus")
    boto3.client("s3").put_object(Bucket="corpus", Key="model/a.txt", Body=b"one")
    boto3.client("s3").put_object(Bucket="corpus", Key="model/more/b.txt", Body=b"two")
    yield "s3://corpus"
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_object_stores(bucket: str) -> None:
    url = f"{bucket}/model/a.txt"
    path = fetch_file(url, sha256=hashlib.sha256(b"one").hexdigest())
    assert path.read_bytes() == b"one"
    assert source_digest(url) == source_digest(url)
    tree = fetch_tree(f"{bucket}/model")
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert files == {"a.txt": b"one", "more/b.txt": b"two"}
    with pytest.raises(DataError, match="no such file"):
        fetch_file(f"{bucket}/model/c.txt")
    with pytest.raises(DataError, match="expected a folder"):
        fetch_tree(f"{bucket}/nothing")
