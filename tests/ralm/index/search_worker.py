"""A process that searches its rows together with others: `torchrun ... search_worker.py JSON`. Used by the tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import torch

from ralm.distributed import join_world, leave_world
from ralm.index.search import open_index


def anonymous_bytes() -> int:
    """Memory of this process that belongs to no file."""
    return sum(each.private_dirty for each in psutil.Process().memory_maps() if not each.path.startswith("/"))


def main() -> None:
    job = json.loads(sys.argv[1])
    world = join_world(torch.device("cpu"))
    question_BD = np.load(job["questions"])
    own_BD = (
        question_BD[slice(*job["parts"][world.rank])] if job.get("parts") else question_BD[world.part(len(question_BD))]
    )
    before = anonymous_bytes()
    index = open_index(job["index"], passage_encoder=job["passage_encoder"], device=torch.device("cpu"), world=world)
    opened = anonymous_bytes() - before
    found = index.search(own_BD, job["k"])
    np.savez(
        Path(job["output"]) / f"rank-{os.environ.get('RANK', 0)}.npz",
        **found._asdict(),
        num_rows=len(index.passage_ids),
        opened_bytes=opened,
    )
    world.barrier()
    leave_world()


if __name__ == "__main__":
    main()
