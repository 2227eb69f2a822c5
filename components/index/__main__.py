"""`python -m components.index`."""

import sys

from components.index.stage import index
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(index))
