"""`python -m components.evaluate`."""

import sys

from components.evaluate.stage import evaluate
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(evaluate))
