"""A toy pipeline and the fixtures of the tests that bring it to the stub server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from components import images
from pipelines import connection, remote
from pipelines.cli import main
from tests.pipelines.kfp_stub import Stub, serving

TOKEN = "eyJhbGciOiJub25lIn0.very-secret"

CRON = "0 0 3 * * 1"

KS: list = [1]

MORE: dict = {}


@dsl.component(base_image=images.BASE_IMAGE, install_kfp_package=False)
def greet_op(text: str) -> str:
    return text


@dsl.pipeline(name="toy-pipeline", description="One task with inputs of every type.")
def toy_pipeline(
    recipe: str, steps: int = 1, rate: float = 0.5, joint: bool = False, ks: list = KS, more: dict = MORE
) -> None:
    """Toy.

    Args:
        recipe: what to start from.
        steps: of training.
        rate: of learning.
        joint: both encoders.
        ks: of recall.
        more: settings.
    """
    greet_op(text=recipe)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compiled") / "toy.yaml"
    compiler.Compiler().compile(toy_pipeline, str(path))
    return path.read_text()


@pytest.fixture
def toy(compiled: str, tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(compiled)
    return path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    monkeypatch.setattr(connection, "PAUSES_S", (0.01, 0.02))
    monkeypatch.setattr(remote, "POLL_S", 0.01)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RALM_KFP_TOKEN", TOKEN)
    for server in serving(Stub(token=TOKEN)):
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        yield server


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], toy: Path) -> Callable[..., dict[str, Any]]:
    """`ralm pipeline ...` for the toy file; what it printed as JSON."""

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        found = main(["pipeline", words[0], "--file", str(toy), "--json", *words[1:]])
        printed = capsys.readouterr()
        assert found == code, printed.err
        assert TOKEN not in printed.out + printed.err
        if code:
            (line,) = [line for line in printed.err.splitlines() if line.startswith("ralm: error: ")]
            return {"error": line.removeprefix("ralm: error: "), "out": printed.out}
        return {**json.loads(printed.out), "err": printed.err}

    return run


def submit(call: Callable[..., dict[str, Any]], *words: str, code: int = 0) -> dict[str, Any]:
    return call("submit", "--param", "recipe=quickstart", *words, code=code)


def schedule(call: Callable[..., dict[str, Any]], *words: str, cron: str = CRON, code: int = 0) -> dict[str, Any]:
    return call("schedule", "--param", "recipe=quickstart", "--cron", cron, *words, code=code)
