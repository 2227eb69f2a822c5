"""A cluster of one's own: what a file says of it, what is compiled from that, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.images import BASE_IMAGE, CPU_IMAGE, GPU_IMAGE
from pipelines.cli import main
from pipelines.compile import PROFILES, compile_pipeline, compiled_file
from pipelines.profiles import Cluster, Size, Sizes, read_cluster
from ralm.errors import ConfigError


def read(path: Path) -> list[dict[str, Any]]:
    """The documents of a compiled file."""
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline of training, compiled for another cluster that a file describes."""
    folder = tmp_path_factory.mktemp("own")
    site = folder / "site.yaml"
    site.write_text(
        "registry: registry.example.org/ralm/\n"
        "pull_secret: registry\n"
        "store_uri: s3://bucket/ralm\n"
        "webhook_secret: ''\n"
        "environment: {AWS_ENDPOINT_URL: 'http://store:9000', RALM_WIKI_BASE_URL: 'https://mirror.example.org'}\n"
        "gpu_resource: amd.com/gpu\n"
        "gpu_taint: amd.com/gpu\n"
        "gpu_labels: {gpu.product: MI300X}\n"
        "retries: 1\n"
        "keep_days: 1\n"
        "sizes: {index: {memory: 96Gi}}\n",
        encoding="utf-8",
    )
    words = ["--cluster", str(site), "--output", str(folder / "out"), "--pipeline", "train-and-evaluate"]
    assert main(["pipeline", "compile", *words]) == 0
    assert len(list((folder / "out").iterdir())) == len(PROFILES)
    return folder / "out" / "train_and_evaluate.cluster.yaml"


def test_a_file_says_what_ones_cluster_has(own_file: Path) -> None:
    document, platform = read(own_file)
    executors = document["deploymentSpec"]["executors"]
    settings = platform["platforms"]["kubernetes"]
    for label, executor in executors.items():
        container = executor["container"]
        assert container["image"].startswith("registry.example.org/ralm/ralm-pipelines-python-"), label
        environment = {part["name"]: part["value"] for part in container["env"]}
        assert environment["RALM_STORE_URI"] == "s3://bucket/ralm"
        assert environment["AWS_ENDPOINT_URL"] == "http://store:9000"
        assert environment["RALM_JOB_IMAGE"] == f"registry.example.org/ralm/{GPU_IMAGE}"
        assert environment["RALM_JOB_ACCELERATOR"] == "amd.com/gpu"
        own_settings = settings["deploymentSpec"]["executors"][label]
        assert own_settings["imagePullSecret"][0]["secretNameParameter"]["runtimeValue"]["constant"] == "registry"
        assert len(own_settings["secretAsEnv"]) == 2
    index = executors["exec-index-op"]["container"]["resources"]
    assert (index["resourceMemoryLimit"], index["resourceCpuLimit"]) == ("96Gi", Sizes().index.max_cpus)
    embed = settings["deploymentSpec"]["executors"]["exec-embed-op"]
    assert embed["nodeSelector"]["labels"] == {"gpu.product": "MI300X"}
    assert embed["tolerations"][0]["key"] == "amd.com/gpu"
    assert settings["pipelineConfig"] == {"resourceTtlOnCompletion": 24 * 3600}


def test_a_file_for_ones_own_registry_passes_the_check_before_it_is_sent(
    own_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "lint", str(own_file)]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    words = ["--file", str(own_file), "--host", "http://127.0.0.1:1", "--timeout-s", "1"]
    assert main(["pipeline", "submit", *words]) == 1  # nobody is there
    assert "127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("image", ["elsewhere.example.org/ralm/{}", "registry.example.org/ralm/x-{}", "{}", "python:3"])
def test_images_from_two_places_do_not(
    image: str, own_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = own_file.read_text(encoding="utf-8")
    path = tmp_path / own_file.name
    path.write_text(
        text.replace(f"registry.example.org/ralm/{CPU_IMAGE}", image.format(CPU_IMAGE), 1), encoding="utf-8"
    )
    assert path.read_text(encoding="utf-8") != text
    assert main(["pipeline", "lint", str(path)]) == 2
    assert "found the image" in capsys.readouterr().out


def test_other_profiles_know_nothing_of_the_cluster(tmp_path: Path) -> None:
    cluster = Cluster(registry="registry.example.org")
    path = compile_pipeline("container", tmp_path, "evaluate", cluster)
    assert path.read_bytes() == compiled_file("container", pipeline="evaluate").read_bytes()


def test_a_cluster_without_gpus(tmp_path: Path) -> None:
    sizes = Sizes(
        **{
            kind: Size(cpus="1", max_cpus="2", memory="8Gi", timeout_s=60)
            for kind in ("small", "corpus", "encode", "index", "evaluate", "train")
        }
    )
    document, platform = read(compile_pipeline("cluster", tmp_path, "train-and-evaluate", Cluster(sizes=sizes)))
    for executor in document["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] in (BASE_IMAGE, CPU_IMAGE)
        assert "accelerator" not in executor["container"]["resources"]
        assert {"name": "RALM_JOB_ACCELERATOR", "value": "none"} in executor["container"]["env"]
    assert "tolerations" not in json.dumps(platform)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("registri: x", "site.yaml: unknown setting 'registri'"),
        ("sizes: {index: {memori: 1Gi}}", "site.yaml: unknown setting 'sizes.index.memori'"),
        ("retries: many", "site.yaml: retries: expected int, found many"),
        ("retries: 0", "site.yaml: retries and keep_days: expected at least 1, found 0 and 7"),
        ("gpu_labels: {a: 1}", "site.yaml: gpu_labels: expected str, found 1"),
        ("claim: ''", "site.yaml: claim: expected a name, found an empty text"),
        ("store_uri: ralm/store", "site.yaml: store_uri: expected an object store such as"),
        ("registry: https://registry.example.org", "site.yaml: registry: expected a name such as"),
        ("sizes: {train: {gpus: 8}}", "site.yaml: train: gpus: expected 1 (for each process) or 0, found 8"),
        ("- a", "site.yaml: expected settings by name, found list"),
        ("claim: [", "site.yaml: no YAML"),
        ("claim: Not A Name", "found the kubernetes name 'Not A Name'"),
        ("sizes: {index: {memory: 96Gib}}", "site.yaml: memory: expected an amount such as 64Gi, found '96Gib'"),
        ("sizes: {index: {cpus: many}}", "site.yaml: cpus: expected cores such as 8 or 500m, found 'many'"),
        ("sizes: {index: {cpus: '64'}}", "found a cpu request over its limit"),
        ("environment: {MY_TOKEN: abc}", "found a secret in the environment variable 'MY_TOKEN'"),
        (None, "site.yaml: no such file"),
    ],
)
def test_a_wrong_file_is_one_line_and_leaves_nothing(
    text: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "site.yaml").write_text(text, encoding="utf-8")
    words = ["--cluster", str(tmp_path / "site.yaml"), "--output", str(tmp_path / "out")]
    assert main(["pipeline", "compile", *words, "--pipeline", "reindex", "--profile", "cluster"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ralm: error: ")
    assert expected in line
    assert list((tmp_path / "out").glob("*")) == []


def test_the_committed_files_are_those_of_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("claim: other", encoding="utf-8")
    before = compiled_file("cluster").read_bytes()
    assert main(["pipeline", "compile", "--cluster", str(site)]) == 2
    assert "--cluster goes with --output" in capsys.readouterr().err
    assert compiled_file("cluster").read_bytes() == before


def test_sizes_are_checked(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("sizes: {small: {timeout_s: 0}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="timeout_s of at least 1"):
        read_cluster(str(site))


def test_a_file_for_a_cluster_is_not_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "run", "--pipeline", "evaluate", "--runner", "cluster"]) == 2
    assert "invalid choice: 'cluster'" in capsys.readouterr().err
