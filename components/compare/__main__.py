"""`python -m components.compare`."""

import sys

from components.compare.stage import compare
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(compare))
