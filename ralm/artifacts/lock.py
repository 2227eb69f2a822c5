"""One process on this machine at a time: locks that the kernel frees when their holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock; wait while another process holds it.

    Args:
        path: file of the lock; made if missing, and left.
        doing: what its holder does, for the message: `making X`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is %s; waiting for it", doing)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold a lock if nobody else holds it, without waiting.

    Args:
        path: file of the lock; made if missing, and left.

    Returns:
        Whether it is held: False means that its holder is alive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
