"""`ralm plan`: its refusals, its two outputs, and docs/planning.md, whose example is computed again line by line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.capacity import make_plan, show_plan
from pipelines.cli import main
from pipelines.recipes import RECIPES
from ralm.capacity.memory import GIB
from ralm.capacity.run import Cluster
from ralm.model import open_model

PLANNING = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
EXAMPLE = ["--recipe", "atlas-nq-full-large", "--passages", "37500000", "--devices", "8", "--memory-gib", "80"]


def plan(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def code_block(heading: str) -> list[str]:
    """Lines of the block below a heading of docs/planning.md."""
    text = PLANNING.read_text(encoding="utf-8")
    match = re.search(rf"^## {heading}$.*?^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert match
    return match[1].splitlines()


def shown_results() -> dict[str, str]:
    """The lines that are computed by hand, `name = expression  # result`: each result as it is written there."""
    values: dict[str, Any] = {"__builtins__": {}, "max": max, "round": round}
    shown = {}
    for line in code_block("The same by hand"):
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+) = ([\w\s().,+*/-]+?)\s+# ([\d,.]+)", line)
        assert match, f"not `name = expression  # result`: {line}"
        name, expression, result = match.groups()
        value = eval(expression, values)  # noqa: S307 - only numbers, names above and arithmetic, by the pattern
        decimals = len(result.partition(".")[2])
        assert f"{value:,.{decimals}f}" == result, line
        values[name], shown[name] = value, result
    return shown


def test_the_example_in_the_documents_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    command, *table = code_block("An example")
    assert command.split() == ["$", "ralm", "plan", *EXAMPLE]
    assert main(["plan", *EXAMPLE]) == 0
    assert capsys.readouterr().out.splitlines() == table


def test_every_number_of_the_example_is_computed_in_the_documents() -> None:
    results = set(shown_results().values()) | {result.replace(",", "") for result in shown_results().values()}
    given = {"1", "2", "6", "8", "80", "10,000", "37,500,000"}  # of the command and the recipe
    numbers = {
        number
        for line in code_block("An example")[1:]
        for number in re.findall(r"(?<!\w)\d+(?:,\d{3})*(?:\.\d+)?", line)
    }
    assert numbers - results - given == set()


def test_the_rows_of_the_example_are_the_ones_computed_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    found, shown = plan(*EXAMPLE, capsys=capsys), shown_results()
    training = [f"{number / GIB:.2f}" for number in found["memory"]["training"].values()]
    names = ("weights", "gradients", "optimiser_state", "computed_with", "activations", "scores", "again", "shard")
    assert training == [shown[name] for name in (*names, "search", "context")]
    storage = [f"{number / GIB:.2f}" for number in found["storage"].values()]
    assert storage == [shown[name] for name in ("passages", "embeddings", "index", "models", "checkpoints", "renewed")]
    network = [f"{number / 2**20:,.2f}" for number in found["network_per_update"].values() if number]
    assert network == [shown[name] for name in ("questions", "pairs", "exchanged_gradients")]
    kinds = {kind["kind"]: f"{kind['bytes_per_process'] / GIB:.2f}" for kind in found["index_kinds"]}
    assert kinds == {kind: shown[kind] for kind in kinds}
    hours = [f"{found['hours'][name]:.2f}" for name in ("embedding", "training", "refreshes", "total")]
    assert hours == [shown[name] for name in ("embedding_hours", "training_hours", "refresh_hours", "hours")]


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_can_be_planned(recipe: str) -> None:
    found = make_plan(recipe, Cluster(devices=64, nodes=8, memory_gib=640), passages=30_000_000)
    assert all(number >= 0 for number in found["memory"]["training"].values())
    assert found["hours"]["total"] > 0
    assert found["cheapest_kind"]
    assert show_plan(found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--passages", "0"], "passages: expected 1 to 1,000,000,000,000, found 0"),
        (["--passages", "-5"], "passages: expected 1 to"),
        (["--passages", str(10**30)], "passages: expected 1 to"),
        (["--passages", "many"], "argument --passages: invalid int value: 'many'"),
        (["--memory-gib", "nan"], "memory_gib: expected a positive number, found nan"),
        (["--memory-gib", "inf"], "memory_gib: expected a positive number, found inf"),
        (["--memory-gib", "0"], "memory_gib: expected a positive number"),
        (["--memory-gib", "-80"], "memory_gib: expected a positive number"),
        (["--devices", "0"], "devices: expected 1 to"),
        (["--devices", str(10**20)], "devices: expected 1 to"),
        (["--nodes", "9"], "nodes: expected at most 8, the number of devices, found 9"),
        (["--nodes", "3"], "devices: expected a multiple of the 3 nodes, found 8"),
        (["--nodes", "0"], "nodes: expected 1 to"),
        (["--device-rate", "abacus"], "argument --device-rate: invalid choice: 'abacus'"),
        (["--passages-per-s", "-1"], "passages_per_s: expected 0 or a positive number"),
        (["--passages-per-s", "nan"], "passages_per_s: expected 0 or a positive number"),
        (["--efficiency", "1.5"], "efficiency: expected 0 to 1, found 1.5"),
        (["--efficiency", "nan"], "efficiency: expected 0 to 1, found nan"),
        (["--recipe", "atlas-nq"], "recipe: expected one of atlas-fever, "),
        (["--settings", "[1]"], "settings: expected an object of objects"),
        (["--settings", "{"], "settings: no JSON"),
        (["--settings", '{"train": {"lerning_rate": 1}}'], "train.lerning_rate: unknown setting"),
        (["--settings", '{"train": {"batch_size": 0}}'], "batch_size: expected at least 1, found 0"),
        (["--settings", '{"index": {"kind": "tree"}}'], "kind"),
        (["--settings", '{"train": {"num_steps": 1%s}}' % ("0" * 400)], "num_steps: expected 0 to 1,000,000,000,000"),
        (["--settings", '{"train": {"batch_size": 1e400}}'], "batch_size"),
        (["--model", "nowhere"], "nowhere: no such artifact"),
        (["--device-rate", "v100", "--settings", '{"train": {"precision": "bf16"}}'], "expected auto or one of fp16"),
        # what these machines cannot do
        (["--passages", "30"], "train.num_passages, train.num_retrieved: expected at most the 30 passages of the"),
        (["--passages", "40", "--settings", '{"evaluate": {"num_passages": 50}}'], "evaluate.num_passages: expected"),
        (["--settings", '{"index": {"kind": "hnsw"}}'], "hnsw cannot be: a graph cannot be split over 8 processes"),
        (["--passages", "200", "--settings", '{"index": {"kind": "pq"}}'], "pq cannot be: it needs at least 256"),
        (["--settings", '{"index": {"kind": "pq", "code_size": 7}}'], "code_size 7 does not divide 768 values"),
        (["--passages", str(10**9)], "flat takes 178.81 GiB of each device, expected at most 48.00 GiB"),
        (["--memory-gib", "22"], "set train.sharding to gradients, which takes "),
        (["--memory-gib", "18"], "the most of the smaller goes to index shard"),
        (
            ["--memory-gib", "80", "--settings", '{"train": {"micro_batch_size": 8, "gradient_checkpointing": false}}'],
            "activations (estimate) (",
        ),
        (
            ["--memory-gib", "80", "--settings", '{"train": {"micro_batch_size": 8, "gradient_checkpointing": false}}'],
            "set train.gradient_checkpointing, lower train.micro_batch_size",
        ),
        (["--settings", '{"embed": {"token_budget": 10000000}}'], "embedding takes 163.33 GiB of each device"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict(zip(EXAMPLE[::2], EXAMPLE[1::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
    assert main(["plan", *(word for pair in given.items() for word in pair)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("ralm: error: ")
    assert expected in output.err


def test_what_the_message_says_to_do_helps(capsys: pytest.CaptureFixture[str]) -> None:
    tight = [*EXAMPLE[:-1], "22"]
    found = plan(*tight, "--settings", '{"train": {"sharding": "gradients"}}', capsys=capsys)
    assert sum(found["memory"]["training"].values()) <= 22 * GIB
    large = ["--recipe", "atlas-nq-full-large", "--passages", str(10**9), "--devices", "8", "--memory-gib", "80"]
    assert main(["plan", *large]) == 2
    match = re.search(r"choose (\w+) or ", capsys.readouterr().err)
    assert match
    plan(*large, "--settings", json.dumps({"index": {"kind": match[1]}}), capsys=capsys)


def test_settings_change_the_plan_as_they_change_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        *EXAMPLE,
        "--settings",
        '{"train": {"mode": "query_side", "refresh_schedule": "-1"}, "index": {"kind": "pq"}}',
    )
    found, before = plan(*words, capsys=capsys), plan(*EXAMPLE, capsys=capsys)
    assert found["memory"]["training"]["index shard"] == 0
    assert found["main_memory_per_node"] > 0
    assert found["hours"]["embedding"] < before["hours"]["embedding"]
    assert found["hours"]["num_refreshes"] == found["storage"]["renewed indices"] == 0


def test_measured_rates_replace_estimated_ones(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(*EXAMPLE, "--passages-per-s", "1000", "--efficiency", "0.5", capsys=capsys)
    before = plan(*EXAMPLE, capsys=capsys)
    assert found["hours"]["embedding"] == pytest.approx(2 * 37.5e6 / 8000 / 3600)
    assert found["hours"]["training"] == pytest.approx(before["hours"]["training"] / 2)


def test_idle_devices_are_no_error_but_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*EXAMPLE[:-4], "--devices", "96", "--memory-gib", "80"]
    assert main(["plan", *words]) == 0
    assert "32 devices have no question in an update" in capsys.readouterr().out


def test_sizes_are_read_from_a_model_artifact(tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--passages", "5000", "--memory-gib", "4", "--device-rate", "cpu", "--model", tiny_model]
    found = plan(*words, capsys=capsys)
    sizes = {
        half: (open_model(tiny_model).folder / half / "model.safetensors").stat().st_size
        for half in ("reader", "retriever/passage")
    }
    assert 4 * found["weights"]["reader"] == pytest.approx(sizes["reader"], rel=0.05)
    assert 4 * found["weights"]["encoder"] == pytest.approx(sizes["retriever/passage"], rel=0.05)
    assert found["index"]["dimension"] == 32


@pytest.mark.parametrize("value", [0, -3, "wide", None])
def test_a_model_of_no_sensible_size_is_refused(
    value: object, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model", copy_function=shutil.copyfile)
    place = tmp_path / "model" / "reader" / "config.json"
    content = place.read_text(encoding="utf-8")
    place.write_text(content.replace('"d_model": 32', f'"d_model": {json.dumps(value)}'), encoding="utf-8")
    manifest = tmp_path / "model" / "manifest.json"
    sizes = manifest.read_text(encoding="utf-8").replace(str(len(content)), str(place.stat().st_size))
    manifest.write_text(sizes, encoding="utf-8")
    words = ["--passages", "5000", "--memory-gib", "4", "--model", str(tmp_path / "model")]
    assert main(["plan", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_needs_no_model_library_and_is_quick() -> None:
    code = (
        "import sys\n"
        "for name in 'torch transformers faiss mlflow pyarrow numpy kfp'.split(): sys.modules[name] = None\n"
        "from pipelines.cli import main\n"
        f"sys.exit(main({['plan', *EXAMPLE]!r}))\n"
    )
    started_at = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started_at < 5
