"""The benchmark suite: `python -m benchmarks [ROW ...]`, or `make bench` for all rows of a CPU.

Prints goal, figure and whether it is met for each row, with the limits of the machine as this run found them. Each run
is kept as `WORK/runs/TIME.json` with a plot, and goes to MLflow; `--append` also puts the table into a Markdown file.
Peers that are not installed (`pip install -e '.[bench]'`) are left out, and what needs them is "not measured".
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.machine import LEAST_REPEATS, LONG_S
from benchmarks.plots import goals_plot
from benchmarks.suite import ROWS, Bench, check_goals, goal_table, measure_apart, peer_versions, positive
from ralm import tracking
from ralm.cli import EXIT_INTERRUPTED, exit_code


def main(argv: list[str] | None = None) -> int:
    """Run rows; 1 if one of them failed (a missed goal is no failure), 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; by default all")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder for models, corpora and vectors")
    parser.add_argument("--repeats", type=positive, default=5, help="of each way, in turns")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--append", type=Path, help="Markdown file that the table goes into")
    given = parser.parse_args(argv)
    unknown = [row for row in given.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if given.append and not given.append.is_file():
        parser.error(f"--append: no file {given.append}")
    with exit_code() as outcome:
        return run_suite(given.rows or list(ROWS), Bench(given.work, given.small, given.repeats), given.append)
    return outcome.code


def run_suite(rows: list[str], bench: Bench, append: Path | None) -> int:
    """Measure, show and keep; the exit code."""
    try:
        run = measure_rows(rows, bench)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED  # the row has said so
    text = "\n".join(describe(run))
    print(text)
    folder = bench.work / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    files = {".json": json.dumps(run, indent=1) + "\n", ".svg": goals_plot(run["goals"])}
    places = {ending: folder / f"{run['time'].replace(':', '')}{ending}" for ending in files}
    for ending, content in files.items():
        places[ending].write_text(content, encoding="utf-8")
    if append:
        insert(append, text)
    with tracking.stage_run("benchmark"):
        figures = {row: found["figures"] for row, found in run["rows"].items()}
        tracking.log_metrics({f"{row}.{name}": value for row, of in figures.items() for name, value in of.items()})
        for place in places.values():
            tracking.log_artifact(place)
    return int(any("error" in found for found in run["rows"].values()))


def measure_rows(rows: list[str], bench: Bench) -> dict[str, Any]:
    """Measure one after the other."""
    started_at = datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None)
    load = os.getloadavg()[0]
    found = {row: measure_apart(row, bench) for row in rows}
    return {
        "time": started_at.isoformat(),
        "machine": machine(),
        "load_before": round(load, 2),
        "small": bench.small,
        "repeats": bench.repeats,
        "versions": peer_versions(),
        "rows": found,
        "goals": check_goals(found),
    }


def machine() -> str:
    """Processor and number of cores; clouds hide the rest of its name, but family and model tell the generation."""
    name = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        found = {key.strip(): value.strip() for key, _, value in lines}
        name = found.get("model name", name)
        if "cpu family" in found:
            name = f"{name} (family {found['cpu family']}, model {found['model']})"
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def describe(run: dict[str, Any]) -> list[str]:
    """A run as Markdown."""
    limits = run["rows"].get("limits", {}).get("table", [])
    failed = [f"{row}: {found['error']}" for row, found in run["rows"].items() if "error" in found]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    medians = f"medians of {run['repeats']}, of {LEAST_REPEATS} where these take {LONG_S:g} s"
    total = sum(found["seconds"] for found in run["rows"].values())
    return [
        f"## {run['time'].partition('T')[0]}: benchmark suite{' (tiny sizes: no figures)' if run['small'] else ''}",
        "",
        f"`python -m benchmarks`, begun at {run['time']} UTC, {total / 60:.0f} minutes; {run['machine']}; load before "
        f"{run['load_before']}; {medians}. {versions}.",
        "",
        *goal_table(run["goals"]),
        "",
        *limits,
        *([""] if limits else []),
        *failed,
    ]


def insert(file: Path, text: str) -> None:
    """Put a section before the first one of a Markdown file."""
    before, mark, after = file.read_text(encoding="utf-8").partition("\n## ")
    file.write_text(f"{before}\n{text.rstrip()}\n{mark}{after}", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
