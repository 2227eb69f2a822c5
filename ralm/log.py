"""Logging set-up and progress of long loops. What a stage prints for people goes to stderr, results to stdout."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

REPORT_EVERY_S = 30.0
PROGRESS_MARK = "@progress "
"""Starts a line that is meant for the driver of a pipeline run, which shows it in place (`RALM_PROGRESS=driver`)."""
logger = logging.getLogger(__name__)


def is_distributed_worker() -> bool:
    """True in a process that torch's launcher started (`torchrun`, or the train stage itself)."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def is_first_worker() -> bool:
    """False in the processes of a distributed run that leave it to the first one to say how it goes."""
    return not is_distributed_worker() or os.environ["RANK"] == "0"


def set_up_logging(level: str | int | None = None) -> None:
    """Send log lines to stderr: `HH:MM:SS level message`. The level may come from `RALM_LOG_LEVEL`."""
    chosen = level or os.environ.get("RALM_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(
        level=chosen if is_first_worker() else logging.ERROR,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for name in (
        "httpx",
        "urllib3",
        "faiss",
        "fsspec",
        "filelock",
        "alembic",
        "kfp",
        "botocore",
        "aiobotocore",
        "s3fs",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


class progress:  # noqa: N801 - reads as a verb at the call site: `with progress(...) as bar`
    """Show how far a long loop is: a bar on a terminal, elsewhere one log line every 30 s.

    Args:
        total: number of units of work, None where unknown.
        what: what is being done, a verb such as `embed`.
        unit: plural noun of the unit, such as `passages`.

    Example:
        >>> with progress(total=2, what="count", unit="things") as bar:
        ...     bar.update(1)
        ...     bar.update(1)
        >>> bar.done
        2
    """

    def __init__(self, *, total: int | None, what: str, unit: str) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done = self._reported = 0
        self._started_at = self._reported_at = time.monotonic()
        self._bar: tqdm | None = None
        self._has_driver = os.environ.get("RALM_PROGRESS") == "driver"
        self._every_s = 1.0 if self._has_driver else REPORT_EVERY_S

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and is_first_worker():
            self._bar = tqdm(total=self.total, desc=self.what, unit=f" {self.unit}", unit_scale=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None and self.elapsed_s >= REPORT_EVERY_S and self._reported < self.done:
            logger.info("%s", self._line())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the loop began."""
        return time.monotonic() - self._started_at

    def update(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done; `note` (a loss, say) is shown behind the figures."""
        self.done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._reported_at >= self._every_s:
            self._reported_at, self._reported = time.monotonic(), self.done
            if self._has_driver and is_first_worker():
                print(f"{PROGRESS_MARK}{self._line(note)}", file=sys.stderr, flush=True)
            else:
                logger.info("%s", self._line(note))

    def _line(self, note: str = "") -> str:
        rate = self.done / max(self.elapsed_s, 1e-9)
        line = f"{self.what}: {self.done:,}"
        if self.total is not None:
            line += f" / {self.total:,}"
        line += f" {self.unit}, "
        line += f"{rate:,.1f} a second" if rate >= 1 or not self.done else f"{1 / rate:,.1f} s each"
        if self.total is not None and rate > 0 and self.done < self.total:
            line += f", {(self.total - self.done) / rate:,.0f} s left"
        return f"{line}, {note}" if note else line
