# ruff: noqa: F401, F811 - fixtures are imported
"""`ralm pipeline schedule`: the genuine client of kfp against a stub of the v2beta1 REST API."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import recurring
from pipelines.cli import main
from tests.pipelines.kfp_stub import API, Stub
from tests.pipelines.kfp_toy import CRON, TOKEN, call, compiled, schedule, stub, submit, toy


def test_a_schedule_of_one_run_at_a_time_without_catching_up(stub: Stub, call: Any) -> None:
    result = schedule(call, "--param", "steps=3", "--service-account", "editor")
    (sent,) = stub.sent(f"POST {API}/recurringruns")
    body = sent.body
    assert body["trigger"] == {"cron_schedule": {"cron": CRON}}
    assert (body["no_catchup"], int(body["max_concurrency"]), body["mode"]) == (True, 1, "ENABLE")
    assert body["display_name"] == "toy-pipeline"
    assert body["runtime_config"]["parameters"] == {"recipe": "quickstart", "steps": 3}
    assert body["service_account"] == "editor"
    assert body["pipeline_version_reference"]["pipeline_version_id"] == result["version_id"]
    (number,) = stub.recurring_runs
    assert (result["done"], result["recurring_run_ids"]) == ("created", [number])
    assert result["url"] == f"{stub.url}/#/recurringrun/details/{number}"


def test_the_same_schedule_again_changes_nothing(stub: Stub, call: Any) -> None:
    first = schedule(call)
    kept = schedule(call, cron="0 3 * * 1")
    assert (kept["done"], kept["recurring_run_ids"]) == ("kept", first["recurring_run_ids"])
    assert len(stub.sent(f"POST {API}/recurringruns.*")) == 1


@pytest.mark.parametrize(
    ("words", "cron"),
    [
        ([], "0 0 4 * * 1"),
        (["--param", "steps=2"], CRON),
        (["--service-account", "other"], CRON),
        (["--experiment", "other"], CRON),
        (["--follow-latest"], CRON),
    ],
)
def test_other_settings_replace_the_schedule(words: list[str], cron: str, stub: Stub, call: Any) -> None:
    (former,) = schedule(call)["recurring_run_ids"]
    result = schedule(call, *words, cron=cron)
    (number,) = stub.recurring_runs
    assert number != former
    assert (result["done"], result["replaced"], result["recurring_run_ids"]) == ("replaced", [former], [number])
    assert stub.recurring_runs[number]["mode"] == "ENABLE"
    assert stub.most_enabled == 1
    assert schedule(call, *words, cron=cron)["done"] == "kept"


def test_a_new_version_of_the_file_replaces_the_schedule_unless_it_follows_the_latest(
    stub: Stub, call: Any, toy: Path
) -> None:
    schedule(call)
    schedule(call, "--follow-latest", "--name", "latest")
    toy.write_text(toy.read_text() + "# changed\n")
    pinned = schedule(call)
    assert (pinned["done"], pinned["is_new"]) == ("replaced", True)
    assert schedule(call, "--follow-latest", "--name", "latest")["done"] == "kept"
    references = {run["display_name"]: run["pipeline_version_reference"] for run in stub.recurring_runs.values()}
    assert set(references["latest"]) == {"pipeline_id"}
    assert references["toy-pipeline"]["pipeline_version_id"] == pinned["version_id"]
    assert len(stub.enabled()) == 2


def test_disable_enable_and_delete(stub: Stub, call: Any) -> None:
    (number,) = schedule(call)["recurring_run_ids"]
    schedule(call, "--name", "Toy-Pipeline")  # the database finds it under the same name
    assert call("schedule", "--disable") == {
        "name": "toy-pipeline",
        "done": "disabled",
        "recurring_run_ids": [number],
        "err": "",
    }
    assert [run["display_name"] for run in stub.enabled()] == ["Toy-Pipeline"]
    assert schedule(call)["done"] == "enabled"
    assert number in [run["recurring_run_id"] for run in stub.enabled()]
    assert call("schedule", "--delete")["done"] == "deleted"
    assert number not in stub.recurring_runs
    assert "no recurring run 'toy-pipeline'" in call("schedule", "--delete", code=2)["error"]
    assert len(stub.recurring_runs) == 1


def test_a_schedule_that_was_disabled_by_hand_is_replaced_by_an_enabled_one(stub: Stub, call: Any) -> None:
    schedule(call)
    call("schedule", "--disable")
    assert schedule(call, cron="0 5 * * *")["done"] == "replaced"
    (run,) = stub.recurring_runs.values()
    assert (run["mode"], run["trigger"]["cron_schedule"]["cron"]) == ("ENABLE", "0 0 5 * * *")


STEPS = [f"POST {API}/recurringruns", rf"POST {API}/recurringruns/.*:disable", rf"POST {API}/recurringruns/.*:enable"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", [{"status": 400}, {"status": 500}, {"kind": "drop"}])
def test_a_replacement_that_fails_leaves_the_former_schedule(
    step: str, fault: dict[str, Any], stub: Stub, call: Any
) -> None:
    (former,) = schedule(call)["recurring_run_ids"]
    stub.fail(step, **fault)
    error = schedule(call, cron="0 5 * * *", code=1)["error"]
    assert [run["recurring_run_id"] for run in stub.enabled()] == [former]
    if step != STEPS[0]:
        assert "the former schedule is enabled as before" in error
    assert schedule(call, cron="0 5 * * *")["done"] == "replaced"
    (run,) = stub.recurring_runs.values()
    assert (run["mode"], stub.most_enabled) == ("ENABLE", 1)


@pytest.mark.parametrize("step", [*STEPS, rf"DELETE {API}/recurringruns/.*"])
@pytest.mark.parametrize("kind", ["silence", "drop", "status"])
def test_a_replacement_whose_answers_are_lost_is_still_one(step: str, kind: str, stub: Stub, call: Any) -> None:
    (former,) = schedule(call)["recurring_run_ids"]
    stub.fail(step, kind=kind, is_accepted=True)
    assert schedule(call, "--timeout-s", "0.3", cron="0 5 * * *")["done"] == "replaced"
    (run,) = stub.recurring_runs.values()
    assert (run["mode"], stub.most_enabled) == ("ENABLE", 1)
    assert run["recurring_run_id"] != former


def test_a_former_schedule_that_cannot_be_deleted_stays_disabled(stub: Stub, call: Any) -> None:
    (former,) = schedule(call)["recurring_run_ids"]
    stub.fail(rf"DELETE {API}/recurringruns/.*", status=403, message="no")
    result = schedule(call, cron="0 5 * * *")
    assert f"recurring run {former} is left behind, disabled" in result["err"]
    assert [run["recurring_run_id"] for run in stub.enabled()] == result["recurring_run_ids"]


def test_a_server_that_goes_away_during_a_replacement_is_told(stub: Stub, call: Any) -> None:
    schedule(call)
    stub.fail(rf"(GET|POST) {API}/recurringruns/.*", status=503, times=100)
    error = schedule(call, cron="0 5 * * *", code=1)["error"]
    assert "whether a schedule is enabled now is not known" in error


def test_an_enabling_that_comes_true_late_does_not_leave_two(stub: Stub, call: Any) -> None:
    (former,) = schedule(call)["recurring_run_ids"]
    stub.fail(STEPS[2], kind="drop")
    answer = stub.answer

    def late(request: Any) -> Any:
        found = dict(answer(request))
        if len(stub.sent(rf"GET {API}/recurringruns/.+")) == 2:  # looked at for the last time
            stub.answer = answer  # type: ignore[method-assign]
            stub.recurring_runs[found["recurring_run_id"]]["mode"] = "ENABLE"
        return found

    stub.answer = late  # type: ignore[method-assign]
    schedule(call, cron="0 5 * * *", code=1)
    assert [run["recurring_run_id"] for run in stub.enabled()] == [former]
    assert schedule(call, cron="0 5 * * *")["done"] == "replaced"


def test_ctrl_c_during_a_replacement_brings_the_former_schedule_back(
    stub: Stub, call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: Path
) -> None:
    (former,) = schedule(call)["recurring_run_ids"]
    switch = recurring._switch

    def interrupted(there: Any, run: Any, mode: str) -> None:
        if mode == "ENABLE" and run.recurring_run_id != former:
            raise KeyboardInterrupt
        switch(there, run, mode)

    monkeypatch.setattr(recurring, "_switch", interrupted)
    words = ["pipeline", "schedule", "--file", str(toy), "--param", "recipe=a", "--cron", "0 5 * * *"]
    assert main(words) == 130
    assert "the former schedule is enabled as before" in capsys.readouterr().err
    assert [run["recurring_run_id"] for run in stub.enabled()] == [former]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 3 * * MON", "0 30 3 * * MON"),
        ("0  30 3 ? JAN-MAR,dec 1-5/2", "0 30 3 ? JAN-MAR,dec 1-5/2"),
        ("*/10 0/6 29 2 *", "0 */10 0/6 29 2 *"),
        ("0 0 31 2 1", "0 0 0 31 2 1"),  # each Monday of February
    ],
)
def test_cron_is_six_fields(text: str, expected: str, stub: Stub, call: Any) -> None:
    assert schedule(call, cron=text)["cron"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ", "found 0 in ' '"),
        ("@daily", "expected five fields"),
        ("0 0 3 * * 1 2026", "found 7"),
        ("60 3 * * *", "minute: expected numbers from 0 to 59"),
        ("0 24 * * *", "hour: expected numbers from 0 to 23"),
        ("0 3 0 * *", "day of the month: expected numbers from 1 to 31"),
        ("0 3 * FOO *", "month: expected numbers from 1 to 12 or JAN to DEC"),
        ("0 3 * * 7", "day of the week: expected numbers from 0 to 6 or SUN to SAT"),
        ("0 3 * * 5-1", "found '5-1'"),
        ("*/0 3 * * *", "found '*/0'"),
        ("1,,2 3 * * *", "found ''"),
        ("0 3 L * *", "found 'L'"),
        ("-1 3 * * *", "found '-1'"),
        ("* 0 3 * * 1", "several runs a minute"),
        ("0 3 30 2 *", "never comes: the months it names have at most 29 days"),
    ],
)
def test_wrong_cron_is_refused_before_any_call(text: str, expected: str, stub: Stub, call: Any) -> None:
    assert expected in schedule(call, cron=text, code=2)["error"]
    assert stub.requests == []
