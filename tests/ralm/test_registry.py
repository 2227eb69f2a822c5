from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ralm import lease, registry, rollback, serving
from ralm.artifacts.manifest import open_artifact
from ralm.errors import ArtifactError, ConfigError
from ralm.registry import Judge, Registration, Verdict, register_pair
from ralm.serving import Pair, RegisteredVersion, open_pair, versions
from tests.evaluations import Pairs, open_registry


@pytest.fixture(autouse=True)
def database(ralm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_registry(ralm_home, monkeypatch)


def pair(name: str) -> Pair:
    return Pair(recipe="toy", fingerprints={"model": name}, model="m", index="i", passages="p")


def always(promote: bool) -> Judge:
    return lambda champion: Verdict(promote=promote, reason=f"seen {champion.version if champion else 'none'}")


def register(name: str, promote: bool = True, **tags: str) -> Registration:
    return register_pair(pair(name), tags=tags, judge=always(promote))


def aliases() -> dict[str, str]:
    return {version.version: version.alias for version in versions("toy")}


def tags_of(version: str) -> dict[str, str]:
    return next(found.tags for found in versions("toy") if found.version == version)


def test_a_version_says_why_and_against_whom() -> None:
    first = register("a")
    assert (first.version, first.alias, first.measured_against, first.replaced) == ("1", "champion", "", "")
    refused = register("b", promote=False)
    assert (refused.alias, refused.promoted, refused.measured_against, refused.replaced) == (
        "challenger",
        False,
        "1",
        "",
    )
    third = register("c")
    assert (third.promoted, third.measured_against, third.replaced, third.reason) == (True, "1", "1", "seen 1")
    assert aliases() == {"1": "", "2": "challenger", "3": "champion"}
    assert tags_of("3")[serving.REPLACED_TAG] == tags_of("3")[serving.MEASURED_TAG] == "1"
    assert tags_of("2")[serving.REASON_TAG] == "seen 1"
    assert serving.REPLACED_TAG not in tags_of("2")


def test_a_pair_that_is_champion_already_keeps_what_was_noted() -> None:
    register("a")
    first = register("b")
    again = register_pair(pair("b"), tags={"ralm.wiki": "x"}, judge=always(False))
    assert again == first
    assert aliases() == {"1": "", "2": "champion"}
    assert tags_of("2")["ralm.wiki"] == "x"


def test_a_challenger_that_is_promoted_is_no_challenger() -> None:
    register("a")
    register("b", promote=False)
    register("b")
    assert serving.recipes() == ["toy"]
    with serving.asking_registry() as client:
        assert serving.aliases_of(client, "ralm-toy") == {"champion": "2"}


def test_a_kill_after_the_version_was_made_leaves_no_nameless_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_champion_and", die)
        with pytest.raises(KeyboardInterrupt):
            register("a", **{serving.PARENT_TAG: "7"})
    (found,) = versions("toy")
    assert found.tags[serving.PAIR_TAG] == pair("a").fingerprint
    assert (found.alias, found.tags[serving.PARENT_TAG]) == ("", "7")
    assert register("a").version == "1"
    assert aliases() == {"1": "champion"}


def test_a_kill_before_the_alias_moves_leaves_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    register("a")

    def die(_: lease.Lease) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lease.Lease, "check", die)
        with pytest.raises(KeyboardInterrupt):
            register("b")
    assert aliases() == {"1": "champion", "2": ""}
    assert register("b").replaced == "1"


def test_the_version_that_was_indexed_anew_stays_the_parent() -> None:
    register("a", **{serving.PARENT_TAG: "7"})
    register("a", **{serving.PARENT_TAG: "8"})
    assert tags_of("1")[serving.PARENT_TAG] == "7"


def test_a_pair_is_measured_again_when_another_champion_came_up() -> None:
    register("a")
    seen = []

    def judge(champion: RegisteredVersion | None) -> Verdict:
        assert champion is not None
        seen.append(champion.version)
        if len(seen) == 1:
            register("between")
        return Verdict(promote=True, reason=f"better than {champion.version}")

    result = register_pair(pair("b"), tags={}, judge=judge)
    assert seen == ["1", "3"]
    assert (result.promoted, result.measured_against, result.replaced) == (True, "3", "3")
    assert result.reason == "better than 3"


def test_a_promotion_that_was_overtaken_may_be_refused() -> None:
    register("a")

    def judge(champion: RegisteredVersion | None) -> Verdict:
        assert champion is not None
        if champion.version == "1":
            register("between")
        return Verdict(promote=champion.version == "1", reason=f"against {champion.version}")

    result = register_pair(pair("b"), tags={}, judge=judge)
    assert (result.promoted, result.alias, result.reason) == (False, "challenger", "against 3")
    assert aliases() == {"1": "", "2": "challenger", "3": "champion"}


def test_a_champion_that_never_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_ROUNDS", 2)
    register("a")

    def judge(champion: RegisteredVersion | None) -> Verdict:
        assert champion is not None
        register(f"after {champion.version}")
        return Verdict(promote=True, reason="better")

    result = register_pair(pair("b"), tags={}, judge=judge)
    assert (result.promoted, result.alias) == (False, "")
    assert "the champion changed 2 times while version 2 was compared with it" in result.reason
    assert tags_of("2")[serving.REASON_TAG] == result.reason


def real_pair(pairs: Pairs, name: str) -> Pair:
    places = pairs.parts(name)
    fingerprints = {kind: open_artifact(place, kind).fingerprint for kind, place in places.items()}
    return Pair(recipe="toy", fingerprints=fingerprints, **places)


@pytest.fixture
def three(tmp_path: Path) -> Pairs:
    """Three versions, each promoted over the one before."""
    pairs = Pairs(tmp_path)
    for name in ("a", "bb", "ccc"):
        register_pair(real_pair(pairs, name), tags={}, judge=always(True))
    return pairs


def test_rollback_goes_back_one_by_one(three: Pairs) -> None:
    move = rollback.rollback("toy", because="wrong dates")
    assert (move.before, move.after, move.reason) == ("3", "2", "rolled back: wrong dates")
    assert aliases() == {"1": "", "2": "champion", "3": ""}
    assert "in favour of version 2" in tags_of("3")[serving.ROLLED_BACK_TAG]
    assert tags_of("3")[serving.ROLLED_BACK_TAG].endswith(": wrong dates")
    assert "in place of version 3" in tags_of("2")[serving.RESTORED_TAG]
    assert rollback.rollback("toy").after == "1"
    with pytest.raises(ConfigError, match="champion 1 took the place of no version that could come back; name one"):
        rollback.rollback("toy")
    assert aliases()["1"] == "champion"


def test_rollback_to_a_named_version(three: Pairs) -> None:
    assert rollback.rollback("toy", to="1").after == "1"
    assert rollback.rollback("toy", to="3").after == "3"
    assert tags_of("3")[serving.ROLLED_BACK_TAG] == ""
    # 2 was never rolled back, but 1 was: from 3 it goes to 2 and then nowhere
    assert rollback.rollback("toy").after == "2"
    with pytest.raises(ConfigError, match="name one with --to: 1, 3"):
        rollback.rollback("toy")
    with pytest.raises(ConfigError, match="expected one of the versions 1, 2, 3, found '4'"):
        rollback.rollback("toy", to="4")
    with pytest.raises(ConfigError, match="version 2 is the champion already"):
        rollback.rollback("toy", to="2")


def test_what_was_rolled_back_is_promoted_only_by_hand(three: Pairs) -> None:
    rollback.rollback("toy", because="wrong dates")
    again = register_pair(real_pair(three, "ccc"), tags={}, judge=always(True))
    assert (again.version, again.promoted) == ("3", False)
    assert "wrong dates; `ralm registry promote 3 --recipe toy --because ...` promotes it" in again.reason
    assert aliases() == {"1": "", "2": "champion", "3": "challenger"}
    move = rollback.promote("toy", "3", because="dates are right after all")
    assert (move.before, move.after) == ("2", "3")
    assert tags_of("3")[serving.REASON_TAG].endswith(": dates are right after all")
    assert aliases() == {"1": "", "2": "", "3": "champion"}
    assert rollback.rollback("toy").after == "2"
    with pytest.raises(ConfigError, match="because: expected why"):
        rollback.promote("toy", "3", because=" ")


def test_rollback_never_serves_what_is_gone(three: Pairs) -> None:
    index = Path(three.parts("bb")["index"])
    (index / "content.txt").unlink()
    with pytest.raises(ArtifactError, match="version 2 cannot be served, the champion stays as it is: .*is missing"):
        rollback.rollback("toy")
    shutil.rmtree(index)
    with pytest.raises(ArtifactError, match="no such artifact"):
        rollback.rollback("toy")
    assert aliases() == {"1": "", "2": "", "3": "champion"}
    assert serving.ROLLED_BACK_TAG not in tags_of("3")
    assert rollback.rollback("toy", to="1").after == "1"


def test_rollback_of_a_champion_that_changed_meanwhile(three: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pair, "check", lambda _: register("between"))
    with pytest.raises(ConfigError, match="the champion was 3 and is now 4; nothing was changed"):
        rollback.rollback("toy")
    assert aliases()["4"] == "champion"
    assert serving.ROLLED_BACK_TAG not in tags_of("3")


def test_without_a_champion_there_is_nothing_to_roll_back() -> None:
    with pytest.raises(ConfigError, match=r"ralm-toy: no champion to roll back; versions: \(none\)"):
        rollback.rollback("toy")


def test_a_pair_is_opened_by_alias_and_by_number(three: Pairs) -> None:
    register("d", promote=False)
    assert open_pair("toy") == open_pair("toy", "3") == real_pair(three, "ccc")
    assert open_pair("toy", "1") == real_pair(three, "a")
    assert open_pair("toy", "challenger") == pair("d")
    assert open_pair("toy", "9") is None
    assert open_pair("other") is None
    with pytest.raises(ConfigError, match="recipe: expected letters"):
        open_pair("toy' or name like '%")


def test_versions_are_told_with_alias_and_tags() -> None:
    assert versions("toy") == []
    register("a", **{serving.DUMP_TAG: "20260101"})
    (found,) = versions("toy")
    assert (found.version, found.alias, found.tags[serving.DUMP_TAG]) == ("1", "champion", "20260101")
    assert found.created_at.endswith("Z")


def test_a_pair_with_an_index_of_another_encoder_is_refused(tmp_path: Path) -> None:
    import mlflow

    from tests.evaluations import write_part

    pairs = Pairs(tmp_path)
    other = write_part(tmp_path / "other-model", "model", fingerprints={"passage_encoder": "f" * 64})
    mixed = real_pair(pairs, "a")
    mixed = Pair(
        recipe="toy",
        model=other,
        index=mixed.index,
        passages=mixed.passages,
        fingerprints={**mixed.fingerprints, "model": open_artifact(other, "model").fingerprint},
    )
    register_pair(mixed, tags={}, judge=always(True))
    with pytest.raises(ArtifactError, match="made by passage encoder e{64}, but .*other-model has f{64}"):
        mlflow.pyfunc.load_model("models:/ralm-toy@champion")
    opened = open_pair("toy")
    assert opened is not None
    with pytest.raises(ArtifactError, match="made by passage encoder"):
        opened.check()


@pytest.fixture
def shared(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """The same database as if it were a server that several machines use; tells the tickets that are out."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database.rename(tmp_path / 'shared.db')}")
    monkeypatch.setattr(lease, "POLL_S", 0.05)

    def tickets() -> list[int]:
        with serving.asking_registry() as client:
            return sorted(lease._tickets(client, ".ralm-promotion-toy"))

    return tickets


def test_tickets_are_given_back_and_are_no_versions(shared: Callable[[], list[int]]) -> None:
    register("a", **{serving.PREDICTIONS_TAG: "store/predictions/1"})
    register("b", promote=False)
    assert shared() == []
    assert serving.recipes() == ["toy"]
    assert serving.registered_places() == ["i", "m", "p", "store/predictions/1"]
    with serving.asking_registry() as client:
        names = {model.name for model in client.search_registered_models()}
        drawn = lease._draw(client, ".ralm-promotion-toy")
    assert names == {"ralm-toy", ".ralm-promotion-toy"}
    assert drawn == 5  # two for making versions, two for aliases: numbers are not used again


def test_a_ticket_of_a_dead_process_is_removed_after_a_time(
    shared: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register("a")
    with serving.asking_registry() as client:
        dead = lease._draw(client, ".ralm-promotion-toy")
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    assert register("b").promoted
    assert f"the holder of ticket {dead} seems to be dead; it is removed" in caplog.text
    assert shared() == []


def test_a_slow_promotion_moves_nothing(shared: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    register("a")
    monkeypatch.setattr(lease, "LEASE_S", 0.0)
    monkeypatch.setattr(registry, "MAX_ROUNDS", 2)
    assert not register("b").promoted
    assert aliases() == {"1": "champion", "2": ""}
    assert shared() == []


def test_who_lost_the_ticket_moves_nothing(shared: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder was taken for dead: its ticket is gone, and another one promotes."""
    register("a")
    monkeypatch.setattr(registry, "MAX_ROUNDS", 1)
    check = lease.Lease.check

    def check_too_late(held: lease.Lease) -> None:
        monkeypatch.setattr(lease.Lease, "check", check)
        held.client.delete_model_version(held.queue, str(held.ticket))
        held.check()

    monkeypatch.setattr(lease.Lease, "check", check_too_late)
    assert not register("b").promoted
    assert aliases() == {"1": "champion", "2": ""}


def test_a_ticket_is_given_back_when_waiting_is_broken_off(
    shared: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register("a")
    with serving.asking_registry() as client:
        other = lease._draw(client, ".ralm-promotion-toy")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lease.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        register("a2")
    assert shared() == [other]


def test_who_was_taken_for_dead_while_waiting_queues_again(
    shared: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register("a")
    with serving.asking_registry() as client:
        other = lease._draw(client, ".ralm-promotion-toy")
        todo = [lambda: max(shared()), lambda: other]

        def sleep(_: float) -> None:
            client.delete_model_version(".ralm-promotion-toy", str(todo.pop(0)()))

        monkeypatch.setattr(lease.time, "sleep", sleep)
        with lease.sole_promoter(client, "ralm-toy") as held:
            assert held.ticket == other + 2
            held.check()
    assert (todo, shared()) == ([], [])


def test_the_commands(three: Pairs, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.parser import Parser
    from pipelines.registry_commands import add_registry
    from ralm.cli import exit_code

    def call(*words: str) -> tuple[int, str]:
        with exit_code() as outcome:
            parser = Parser(prog="ralm")
            add_registry(parser.add_subparsers(required=True, parser_class=Parser))
            arguments = parser.parse_args(["registry", *words])
            result = arguments.run(arguments)
            print(json.dumps(result) if arguments.json else arguments.show(result))
        shown = capsys.readouterr()
        return outcome.code, shown.out + shown.err

    register_pair(real_pair(three, "ccc"), tags={serving.METRIC_TAG: "exact_match=0.25"}, judge=always(True))
    code, text = call("list")
    assert code == 0
    assert "toy 3: champion, exact_match 0.25, 20" in text
    assert "    reason: seen 2" in text
    assert text.endswith("3 versions\n")
    code, text = call("rollback", "--recipe", "toy", "--because", "too slow", "--json")
    assert json.loads(text) == {"name": "ralm-toy", "before": "3", "after": "2", "reason": "rolled back: too slow"}
    _, text = call("list", "--recipe", "toy", "--json")
    listed = {item["version"]: item for item in json.loads(text)["versions"]}
    assert (listed["2"]["alias"], listed["3"]["alias"]) == ("champion", "")
    assert listed["3"]["rolled_back"].endswith("too slow")
    assert call("promote", "3", "--recipe", "toy", "--because", "fast now")[0] == 0
    code, text = call("promote", "3", "--recipe", "toy", "--because", "again")
    assert (code, text) == (2, "ralm: error: ralm-toy: version 3 is the champion already\n")
    assert call("rollback", "--recipe", "toy", "--to", "x")[0] == 2
    assert call("list", "--recipe", "no such")[0] == 2


def test_the_commands_make_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from argparse import Namespace

    from pipelines import registry_commands

    monkeypatch.setenv("RALM_HOME", str(tmp_path / "empty"))
    assert registry_commands.run_list(Namespace(recipe="")) == {"versions": []}
    with pytest.raises(ConfigError, match="registry: there is none"):
        registry_commands.run_rollback(Namespace(recipe="toy", to="", because=""))
    assert not (tmp_path / "empty").exists()
