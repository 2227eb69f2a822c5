"""The registry's promise on PostgreSQL: of two promotions at once, none overrides what it was not measured against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ralm import serving
from tests.ralm.test_registry_on_a_server import RACES, Worker, both, champion, line_of, tags_by_version
from tests.services.conftest import Services

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture
def workers(services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Worker]]:
    """Two processes, as on two machines."""
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    made = [Worker(tmp_path / f"home-{number}") for number in range(2)]
    yield made
    for worker in made:
        worker.process.kill()
        worker.process.wait()


def test_no_promotion_is_lost_however_they_race(workers: list[Worker]) -> None:
    workers[0].call("register_pair", name="first")
    for number in range(RACES):
        answers = both(workers, *({"do": "register_pair", "name": f"{number} of {worker}"} for worker in range(2)))
        assert all(answer["promoted"] for answer in answers), answers
    found = tags_by_version("race")
    assert len(found) == 2 * RACES + 1
    for tags in found.values():
        assert tags[serving.REPLACED_TAG] == tags[serving.MEASURED_TAG]
    assert sorted(line_of("race"), key=int) == [str(number) for number in range(1, 2 * RACES + 2)]


def test_the_same_pair_from_both_is_one_version(workers: list[Worker]) -> None:
    before = len(tags_by_version("race"))
    answers = both(workers, *({"do": "register_pair", "name": "one and the same"} for _ in workers))
    assert answers[0]["version"] == answers[1]["version"] == champion("race")
    assert len(tags_by_version("race")) == before + 1
