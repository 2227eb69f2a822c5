"""Cron expressions as Kubeflow reads them: six fields, the second first, the day of the week from 0 to 6."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ralm.errors import ConfigError


@dataclass(frozen=True)
class Field:
    """One field: its name, its range, and words for its numbers from the lowest on."""

    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()


FIELDS: Final = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    Field("day of the week", 0, 6, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)
DAYS_IN_MONTH: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def parse_cron(text: str) -> str:
    """Check a cron expression; five fields, as cron itself has them, get the second 0 in front.

    Kubeflow would read five fields as second, minute, hour, day and month, which nobody means.

    Raises:
        ConfigError: another number of fields, a value out of range, more than one run a minute, or a day that never
            comes.

    >>> parse_cron("30 3 * * MON")
    '0 30 3 * * MON'
    """
    fields = text.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise ConfigError(
            "cron: expected five fields (minute, hour, day of the month, month, day of the week), or six with the "
            f"second in front, found {len(fields)} in {text!r}"
        )
    values = [_values(field, about) for field, about in zip(fields, FIELDS, strict=True)]
    if len(values[0]) != 1:
        raise ConfigError(f"cron: second: expected one number, found {fields[0]!r}: that is several runs a minute")
    last_day = max(DAYS_IN_MONTH[month - 1] for month in values[4])
    if fields[5][0] in "*?" and min(values[3]) > last_day:  # with both days given, either of them is enough
        raise ConfigError(f"cron: {text!r} never comes: the months it names have at most {last_day} days")
    return " ".join(fields)


def _values(text: str, field: Field) -> set[int]:
    """The numbers that a field stands for."""
    values: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        if match is None:
            raise _wrong(part, field)
        first, last, step = match.groups()
        low = _number(first, field) if first else field.low
        high = _number(last, field) if last else low if first and not step else field.high
        if high < low or (step and int(step) == 0):
            raise _wrong(part, field)
        values.update(range(low, high + 1, int(step or 1)))
    return values


def _number(text: str, field: Field) -> int:
    if text.upper() in field.words:
        return field.low + field.words.index(text.upper())
    if not text.isdecimal() or not field.low <= int(text) <= field.high:
        raise _wrong(text, field)
    return int(text)


def _wrong(text: str, field: Field) -> ConfigError:
    words = f" or {field.words[0]} to {field.words[-1]}" if field.words else ""
    return ConfigError(
        f"cron: {field.name}: expected numbers from {field.low} to {field.high}{words}, as *, 1, 1-5, */2 or 1,3, "
        f"found {text!r}"
    )
