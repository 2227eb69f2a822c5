"""Start the worker processes of a distributed stage on this node, by PyTorch's elastic agent, and wait for them."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from ralm.corpus.parallel import available_cores
from ralm.distributed import LOST_CONNECTION
from ralm.errors import ConfigError, WorkerError

logger = logging.getLogger(__name__)
ENDPOINT = "RALM_RENDEZVOUS"
"""Variable with `host:port` of one node, where the nodes of a run meet; the same command then runs on each of them."""


def run_workers(module: str, job: Mapping[str, Any], *, num_processes: int, nodes: int = 1) -> None:
    """Run `python -m MODULE JSON` in several processes, which find each other by torch's usual variables.

    Args:
        module: what they run; it takes one argument.
        job: that argument, as JSON.
        num_processes: on this node.
        nodes: that take part; with several `RALM_RENDEZVOUS` says where they meet.

    Raises:
        ConfigError: several nodes without a place to meet.
        KeyboardInterrupt: this process was told to stop, and has told the workers.
        WorkerError: a worker ended with an error or was killed; the others were stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    endpoint = os.environ.get(ENDPOINT, "")
    if nodes > 1 and not endpoint:
        raise ConfigError(
            f"nodes: {nodes} nodes have to meet somewhere; set {ENDPOINT}=HOST:PORT of one of them on all"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    settings = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=num_processes,
        run_id=f"ralm-{endpoint}" if nodes > 1 else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint if nodes > 1 else "127.0.0.1:0",
        rdzv_configs={"timeout": 900},
        local_addr=None if nodes > 1 else "127.0.0.1",
        max_restarts=0,
        monitor_interval=0.5,
        logs_specs=DefaultLogsSpecs(),
    )
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed."):  # its tables of failures; the error below says it
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logger.info("starting %d worker processes on this node of %d", num_processes, nodes)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(settings, sys.executable)("-m", module, json.dumps(job))
    except ChildFailedError as error:
        raise _describe(error, num_processes * nodes) from error
    except SignalException as error:
        raise KeyboardInterrupt from error
    finally:  # the agent leaves its own
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_consequence(exit_code: int) -> int:
    """How far an end may be the consequence of another worker's: 0 not at all."""
    return {LOST_CONNECTION: 3, -signal.SIGTERM: 2, -signal.SIGABRT: 2}.get(exit_code, 0 if exit_code < 0 else 1)


def _describe(error: Any, size: int) -> WorkerError | KeyboardInterrupt:
    """The worker that went down by itself: one killed by a signal pulls others down, which then end with errors."""
    rank, failure = min(error.failures.items(), key=lambda each: (_is_consequence(each[1].exitcode), each[0]))
    if failure.exitcode == 130:
        return KeyboardInterrupt()
    how = f"was killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "ended with an error"
    return WorkerError(
        f"process {rank} of {size} {how} (exit code {failure.exitcode}) and the others were stopped; "
        "the same command goes on from the last checkpoint",
        exit_code=failure.exitcode if failure.exitcode > 0 else 1,
    )
