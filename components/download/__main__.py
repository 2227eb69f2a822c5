"""`python -m components.download`."""

import sys

from components.download.stage import download
from ralm.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage(download))
