"""What is in the images, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components import images
from tests.containers.conftest import ENGINE, LOCKED_DOWN, engine

pytestmark = pytest.mark.containers
ROOT = Path(__file__).resolve().parents[2]
SETS = {images.BASE_IMAGE: ("tools", "base", "kfp"), images.CPU_IMAGE: ("tools", "base", "kfp", "cpu")}
STAGES = {
    images.BASE_IMAGE: ("download", "register", "compare"),
    images.CPU_IMAGE: ("embed", "index", "train", "evaluate", "report", "gate"),
}
Run = Callable[..., str]


def locked(image: str) -> set[str]:
    """`name==version` of what an image is locked to."""
    lines = (line for name in SETS[image] for line in (ROOT / "docker" / "lock" / f"{name}.txt").open())
    return {line.split()[0] for line in lines if "==" in line}


@pytest.mark.parametrize("image", SETS)
def test_an_image_holds_what_is_locked_and_nothing_more(image: str, in_image: Run) -> None:
    listed = json.loads(in_image(image, "pip", "list", "--format", "json", "--disable-pip-version-check"))
    found = {f"{item['name'].lower().replace('_', '-')}=={item['version']}" for item in listed}
    assert {item for item in found if not item.startswith("ralm-pipelines==")} == locked(image)
    assert "ralm-pipelines==0.1.0" in found


@pytest.mark.parametrize("image", SETS)
def test_the_bill_of_materials_lists_the_packages(image: str, in_image: Run) -> None:
    bill = json.loads(in_image(image, "cat", "/usr/share/sbom/ralm.cdx.json"))
    found = {f"{part['name'].lower().replace('_', '-')}=={part['version']}" for part in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert locked(image) <= found


@pytest.mark.parametrize("image", SETS)
def test_labels_and_user(image: str) -> None:
    config = json.loads(engine("image", "inspect", image))[0]["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels.items() >= {"version": images.VERSION, "licenses": "Apache-2.0"}.items()
    assert {"title", "description", "revision"} <= labels.keys()
    assert config["User"] == "65532:65532"
    assert not any(name in variable for variable in config["Env"] for name in ("PIP_", "PROXY", "TORCH_INDEX"))


@pytest.mark.parametrize("image", SETS)
def test_nothing_can_be_gained(image: str, in_image: Run) -> None:
    status = in_image(image, "cat", "/proc/self/status")
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == ["65532"] * 4
    assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
    refused = engine("run", *LOCKED_DOWN, image, "sh", "-c", "echo x > /opt/venv/x; echo x > /ralm/x", check=False)
    assert refused.count("Read-only file system") == 2
    with_more_rights = "find / -xdev -type f -perm /6000 2>/dev/null || true"
    assert in_image(image, "sh", "-c", with_more_rights).strip() == ""


@pytest.mark.parametrize(("image", "stage"), [(image, stage) for image, stages in STAGES.items() for stage in stages])
def test_each_stage_is_an_entry_point(image: str, stage: str, in_image: Run) -> None:
    assert "usage:" in in_image(image, "python", "-m", f"components.{stage}", "--help").lower()


def test_a_stage_without_network_and_tracking(in_image: Run, tmp_path: Path, toy_corpus: Path) -> None:
    tmp_path.chmod(0o777)
    home = tmp_path / "home"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    options = ("-v", f"{home}:/ralm", "-v", f"{toy_corpus}:/toy.csv:ro", "-e", "RALM_TRACKING=off")
    words = ("python", "-m", "components.download", "--source", "/toy.csv", "--passages", "/ralm/passages", "--json")
    manifest = json.loads(in_image(images.BASE_IMAGE, *words, options=options).splitlines()[-1])
    assert manifest["counts"]["passages"] == 7
    assert {path.name for path in (home / "passages").iterdir()} >= {"manifest.json", "part-00000.parquet"}


def test_wrong_input_ends_with_two(tmp_path: Path) -> None:
    words = ["python", "-m", "components.download", "--source", "/nothing.csv", "--passages", "/tmp/out"]
    command = [ENGINE, "run", *LOCKED_DOWN, "--network", "none", "-e", "RALM_TRACKING=off", "-e", "RALM_HOME=/tmp/r"]
    done = subprocess.run([*command, images.BASE_IMAGE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "/nothing.csv" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.environ.get("RALM_PLANTED"), reason="only after a build with a planted secret")
@pytest.mark.parametrize("image", SETS)
def test_no_layer_holds_a_secret_of_the_build(image: str) -> None:
    planted = os.environ["RALM_PLANTED"].encode()
    with subprocess.Popen([ENGINE, "save", image], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        rest, size, is_found, is_known = b"", 0, False, False
        while block := process.stdout.read(1 << 24):
            is_found |= planted in rest + block
            is_known |= b"65532:65532" in rest + block
            rest, size = block[-256:], size + len(block)
    assert process.returncode == 0
    assert size > 500_000_000
    assert is_known, "the search cannot see what certainly is there"
    assert not is_found
