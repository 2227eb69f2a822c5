"""`python -m components.embed`."""

import sys

from components.embed.stage import embed
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(embed))
