"""One row of the suite in this process: `python -m benchmarks.rows E1 --work DIR`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

from benchmarks.suite import ROWS, Bench, measure, positive, row_environment
from ralm.cli import exit_code


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the figures; 0, or what an error ends with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder for models, corpora and vectors")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args(argv)
    bench = Bench(work=given.work, small=given.small, repeats=given.repeats)
    os.environ.update(row_environment(bench))
    with exit_code() as outcome:
        given.work.mkdir(parents=True, exist_ok=True)
        found = measure(given.row, bench)
        print(f"\n## {given.row}\n")
        print("\n".join(found.table))
        print("\n".join(f"{name}: {value:.5g}" for name, value in found.figures.items()), flush=True)
        if given.json:
            given.json.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
    return outcome.code


if __name__ == "__main__":
    raise SystemExit(main())
