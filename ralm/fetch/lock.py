"""One process on this machine at a time fetches a given thing; the others wait and find it done."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
from collections.abc import Iterator

from ralm.artifacts.files import cache_folder

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_fetcher(name: str) -> Iterator[None]:
    """Hold the lock of a source while it is fetched. The kernel frees it when the process dies."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    path = cache_folder("downloads") / "locks" / f"{digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is fetching %s; waiting for it", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
