"""When the index is made anew during training. Standard library only: configs use it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ralm.errors import ConfigError

NEVER = "-1"
_RANGE = re.compile(r"(\d+)-(\d+):(\d+)")
_EXPECTED = "-1, a number of updates such as 500, or ranges such as 0-1000:500,1000-10000:2000"


@dataclass(frozen=True)
class RefreshRange:
    """Updates from `start` on and before `stop`, in which the index is made anew every `rate` updates."""

    start: int
    stop: int | None
    """None: no end."""
    rate: int

    def is_due(self, step: int) -> bool:
        """True at the start of the range and every `rate` updates behind it; the end belongs to the next range."""
        return self.start <= step and (self.stop is None or step < self.stop) and (step - self.start) % self.rate == 0


def parse_refresh_schedule(text: str) -> tuple[RefreshRange, ...]:
    """Read a refresh schedule: `-1` (never), `500` (every 500 updates) or `start-end:rate,...` with half-open ranges.

    Source: the grammar of the published Atlas implementation; unlike there, wrong texts are refused.

    Raises:
        ConfigError: not in this grammar, a rate of 0, an empty range, or ranges that overlap.

    Example:
        >>> [step for step in range(1, 12) if refresh_is_due(parse_refresh_schedule("0-4:2,4-10:3"), step)]
        [2, 4, 7]
        >>> refresh_is_due(parse_refresh_schedule("-1"), 5)
        False
    """
    if text == NEVER:
        return ()
    if text.isascii() and text.isdecimal():
        ranges = [RefreshRange(0, None, int(text))]
    else:
        found = [_RANGE.fullmatch(part) for part in text.split(",")]
        ranges = [RefreshRange(*(int(number) for number in match.groups())) for match in found if match]
        if len(ranges) != len(found):
            raise ConfigError(f"refresh_schedule: expected {_EXPECTED}, found {text!r}")
    for each in ranges:
        if each.rate == 0:
            raise ConfigError(f"refresh_schedule: expected a rate of at least 1 update, found 0 in {text!r}")
        if each.stop is not None and each.start >= each.stop:
            raise ConfigError(f"refresh_schedule: range {each.start}-{each.stop} is empty, in {text!r}")
    ordered = sorted(ranges, key=lambda each: each.start)
    for first, second in zip(ordered, ordered[1:], strict=False):
        if first.stop is not None and first.stop > second.start:
            raise ConfigError(f"refresh_schedule: ranges overlap at update {second.start}, in {text!r}")
    return tuple(ordered)


def refresh_is_due(ranges: tuple[RefreshRange, ...], step: int) -> bool:
    """True if the index is to be made anew before update `step` (0 is the first).

    Before update 0 it never is: a run starts with an index of its own passage encoder.
    """
    return step > 0 and any(each.is_due(step) for each in ranges)
