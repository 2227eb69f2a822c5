"""Passages by id."""

from __future__ import annotations

import numpy as np
import pytest

from ralm.corpus.lookup import PassageLookup
from ralm.errors import ArtifactError


def test_passages_come_in_the_order_asked(toy_passages: str) -> None:
    lookup = PassageLookup(toy_passages)
    assert lookup.num_passages == 30
    rows = sorted(lookup._sorted_N.tolist(), reverse=True)
    wanted = [rows[3], rows[29], rows[3], rows[0]]
    assert [passage.passage_id for passage in lookup.get(wanted)] == wanted
    first = lookup.get([rows[0]])[0]
    assert first.text
    assert first.title == first.title.title()


def test_every_id_gives_its_own_text(toy_passages: str) -> None:
    lookup = PassageLookup(toy_passages)
    passages = lookup.get(lookup._sorted_N)
    assert [passage.passage_id for passage in passages] == lookup._sorted_N.tolist()
    assert len({passage.text for passage in passages}) == 30


def test_unknown_id(toy_passages: str) -> None:
    with pytest.raises(ArtifactError, match="no passage with id 5;"):
        PassageLookup(toy_passages).get(np.array([5]))


def test_no_ids(toy_passages: str) -> None:
    assert PassageLookup(toy_passages).get([]) == []
