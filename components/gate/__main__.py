"""`python -m components.gate`."""

import sys

from components.gate.stage import gate
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(gate))
