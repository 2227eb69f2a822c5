"""`python -m components.train`."""

import sys

from components.train.stage import train
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(train))
