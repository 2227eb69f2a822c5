"""`python -m components.register`."""

import sys

from components.register.stage import register
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(register))
