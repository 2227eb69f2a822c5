"""`python -m components.report`."""

import sys

from components.report.stage import report
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(report))
