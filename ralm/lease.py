"""One promotion of a recipe at a time, also between machines: a queue of tickets that the registry itself keeps.

MLflow moves an alias without asking what it was before. So whoever wants to move one first draws a ticket: a version of
a registered model that is there for nothing else. The server numbers versions atomically and never uses a number twice,
and so the holder of the lowest ticket is the one whose turn it is, and a ticket can be removed by its number without
hitting another one. A ticket that stays the lowest for `LEASE_S` on the clock of one who waits belongs to a process
that died; it is removed. No two clocks are compared.

What remains: a holder checks its ticket right before it moves the alias, at most `LEASE_S / 2` after it could have got
its turn. Only if that one last request reaches the server more than another `LEASE_S / 2` later (the process stopped
just there, or the network kept the request) may it override a promotion that came in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ralm import tracking
from ralm.artifacts.files import ralm_home
from ralm.artifacts.lock import only_one
from ralm.errors import RalmError
from ralm.serving import PREFIX, search_versions

LEASE_S = 120.0
POLL_S = 0.5
SOURCE: Final = "ralm:/promotion"
"""What a version has to name as its source; nothing is there."""
HOLDER_TAG: Final = "ralm.holder"
logger = logging.getLogger(__name__)


class LeaseLostError(RalmError):
    """The work took so long that others may have taken its holder for dead; nothing was moved."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """The right to move aliases of a registered model, for a while."""

    client: MlflowClient
    queue: str
    ticket: int
    """0 where the lock of this machine is enough."""
    since: float
    """Before anyone can have seen the ticket as the lowest, on the monotonic clock."""

    def check(self) -> None:
        """To be called right before an alias is moved.

        Raises:
            LeaseLostError: others may have the lease now.
        """
        if not self.ticket:
            return
        is_first = self.ticket == min(_tickets(self.client, self.queue), default=0)
        if not is_first or time.monotonic() - self.since > LEASE_S / 2:
            raise LeaseLostError(f"{self.queue}: MLflow was too slow for a promotion; nothing was moved, try again")


@contextlib.contextmanager
def sole_promoter(client: MlflowClient, name: str) -> Iterator[Lease]:
    """Hold the right to move the aliases of a registered model; wait while another process has it.

    Args:
        client: connected.
        name: of the registered model.

    Raises:
        MlflowException: the server refuses; tickets need the same permissions as the aliases.
    """
    recipe = name.removeprefix(PREFIX)
    with only_one(ralm_home() / "locks" / f"promote-{name}.lock", f"promoting a version of {name}"):
        if tracking.tracking_uri() == tracking.own_database():  # who uses it sees the lock too
            yield Lease(client, "", 0, 0.0)
            return
        lease = _wait_for_turn(client, f".ralm-promotion-{recipe}")
        try:
            yield lease
        finally:
            _give_back(client, lease.queue, lease.ticket)


def _wait_for_turn(client: MlflowClient, queue: str) -> Lease:
    since = time.monotonic()
    ticket = _draw(client, queue)
    first_seen, first_seen_at = 0, 0.0
    try:
        while True:
            asked_at = time.monotonic()
            tickets = _tickets(client, queue)
            first = min(tickets, default=0)
            if first == ticket:
                return Lease(client, queue, ticket, since)
            since = asked_at
            if ticket not in tickets:  # this process was stopped so long that it was taken for dead
                ticket = _draw(client, queue)
            elif first != first_seen:
                first_seen, first_seen_at = first, time.monotonic()
                logger.info(
                    "%s: another promotion is going on, ticket %d; waiting with ticket %d", queue, first, ticket
                )
            elif time.monotonic() - first_seen_at > LEASE_S:
                logger.warning("%s: the holder of ticket %d seems to be dead; it is removed", queue, first)
                _remove(client, queue, first)
            time.sleep(POLL_S)
    except BaseException:
        _give_back(client, queue, ticket)
        raise


def _draw(client: MlflowClient, queue: str) -> int:
    tags = {HOLDER_TAG: f"{socket.gethostname()} {os.getpid()}"}
    for _ in range(2):
        try:
            return int(client.create_model_version(queue, SOURCE, tags=tags).version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        try:
            client.create_registered_model(queue, description="Order of promotions; holds no model.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
    raise RalmError(f"{queue}: the registered model vanishes as soon as it is made")


def _tickets(client: MlflowClient, queue: str) -> set[int]:
    return {int(version.version) for version in search_versions(client, f"name = '{queue}'")}


def _give_back(client: MlflowClient, queue: str, ticket: int) -> None:
    """Let the next one have its turn at once; what was done stays done where that fails."""
    try:
        _remove(client, queue, ticket)
    except MlflowException as error:
        reason = str(error).partition("\n")[0]
        logger.warning("%s: ticket %d stays there, the next promotion has to wait for it: %s", queue, ticket, reason)


def _remove(client: MlflowClient, queue: str, ticket: int) -> None:
    try:
        client.delete_model_version(queue, str(ticket))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
