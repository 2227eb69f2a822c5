"""A worker process of the train stage, started by `ralm/launch.py`: `python -m components.train.worker JSON`."""

import json
import os
import sys

from components.train.stage import train
from ralm.cli import run_task

if __name__ == "__main__":
    os.environ.pop("RALM_EVENTS", None)  # whoever started the workers says how it went
    job = json.loads(sys.argv[1])
    run_task(train, **job["arguments"], config=json.dumps(job["config"]))
