"""One process on this machine at a time fetches a given thing; the others wait and find it done."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

from ralm.artifacts.files import cache_folder
from ralm.artifacts.lock import only_one


def only_fetcher(name: str) -> AbstractContextManager[None]:
    """The lock of a source, to be held while it is fetched."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return only_one(cache_folder("downloads") / "locks" / f"{digest}.lock", f"fetching {name}")
