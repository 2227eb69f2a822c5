"""The HTTP endpoints: MLflow's scoring protocol, and what a cluster asks a server about.

Answers and errors look as those of `mlflow models serve`, so that a client need not know which of the two it talks to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib import metadata

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ralm.errors import ConfigError
from ralm.service.batching import QueueFullError, StoppedError
from ralm.service.protocol import Asked, Limits, parse_request
from ralm.service.state import Answered, NotReadyError, Service
from ralm.service.traces import TracedRequest, Traces

MAX_DISCARDED = 16
"""A body that is too large is read up to this many times the limit, so that its sender gets to read why."""
RETRY_AFTER_S = 5
CLIENT_LEFT = 499
"""For the log; nobody gets it."""
CODES = {
    400: "INVALID_PARAMETER_VALUE",
    404: "ENDPOINT_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    415: "UNSUPPORTED_MEDIA_TYPE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
logger = logging.getLogger(__name__)


def build_app(service: Service, limits: Limits, traces: Traces) -> Starlette:
    """The ASGI application.

    Args:
        service: what answers.
        limits: of a request.
        traces: where requests are noted.
    """
    endpoints = _Endpoints(service, limits, traces)
    return Starlette(
        routes=[
            Route("/ping", endpoints.health),
            Route("/health", endpoints.health),
            Route("/ready", endpoints.ready),
            Route("/version", endpoints.version),
            Route("/invocations", endpoints.invocations, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refused},
    )


async def _refused(request: Request, error: Exception) -> Response:
    """404 and 405, in the words of all other errors."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"no endpoint {request.url.path}; there are /invocations, /health, /ready and /version",
        405: f"{request.url.path}: {request.method} is not allowed here",
    }.get(error.status_code, error.detail)
    return failure(error.status_code, message, error.headers)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as MLflow's servers tell it."""
    content = {"error_code": CODES.get(status, "BAD_REQUEST"), "message": message}
    return JSONResponse(content, status_code=status, headers=headers)


class _TooLargeError(ConfigError):
    """A body that is longer than allowed."""


class _Endpoints:
    def __init__(self, service: Service, limits: Limits, traces: Traces) -> None:
        self._service, self._limits, self._traces = service, limits, traces

    async def health(self, _: Request) -> Response:
        """The process is alive."""
        return JSONResponse({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """The pair answers."""
        state = self._service.state
        if state == "ready":
            return JSONResponse({"status": state})
        return JSONResponse({"status": state}, status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})

    async def version(self, _: Request) -> Response:
        """What answers now."""
        pair = self._service.pair
        software = {"ralm": metadata.version("ralm-pipelines"), "mlflow": metadata.version("mlflow-skinny")}
        facts = {**pair.name, "fingerprints": pair.fingerprints, "since": pair.since} if pair else {}
        return JSONResponse({"status": self._service.state, **facts, "software": software})

    async def invocations(self, request: Request) -> Response:
        """Answer questions."""
        started_ns, started_at = time.time_ns(), time.monotonic()
        try:
            asked = await self._read(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        except _TooLargeError as error:
            return failure(400, str(error), {"Connection": "close"})  # or the rest of it would be read
        except ConfigError as error:
            return failure(400, str(error))
        response = await self._answer(request, asked, started_ns)
        elapsed_ms = (time.monotonic() - started_at) * 1000
        logger.info("%d after %.0f ms, questions: %d", response.status_code, elapsed_ms, len(asked.questions))
        return response

    async def _read(self, request: Request) -> Asked:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            message = f"Content-Type: expected application/json, found {kind[:50]!r}"
            raise HTTPException(415, message)
        limit, body, size = self._limits.max_body_bytes, bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                body += part
            elif size > limit * MAX_DISCARDED:
                break
        if size > limit:
            raise _TooLargeError(f"body: expected at most {limit} bytes, found more")
        return parse_request(bytes(body), self._limits)

    async def _answer(self, request: Request, asked: Asked, started_ns: int) -> Response:
        async def is_given_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        try:
            answered = await self._service.answer(asked, is_given_up)
        except (NotReadyError, StoppedError) as error:
            state = {"loading": "is not loaded yet", "failed": "does not answer at the moment"}
            message = f"the model {state.get(str(error), 'is being shut down')}"
            return failure(503, message, {"Retry-After": str(RETRY_AFTER_S)})
        except QueueFullError as error:
            return failure(503, str(error), {"Retry-After": str(error.retry_after_s)})
        except Exception as error:
            logger.exception("a request of %d questions failed", len(asked.questions))
            self._trace(asked, None, started_ns, type(error).__name__)
            return failure(500, "the model could not answer; the server's log says why")
        if answered is None:
            return Response(status_code=CLIENT_LEFT)
        self._trace(asked, answered, started_ns)
        return JSONResponse({"predictions": [done.answer.to_json() for done in answered.answers]})

    def _trace(self, asked: Asked, answered: Answered | None, started_ns: int, error: str = "") -> None:
        pair = answered.pair if answered else self._service.pair
        self._traces.put(
            TracedRequest(
                questions=asked.questions,
                k=answered.k if answered else asked.k,
                answers=answered.answers if answered else [],
                facts={**pair.name, **pair.fingerprints} if pair else {},
                model_id=pair.target.model_id if pair else "",
                started_ns=started_ns,
                ended_ns=time.time_ns(),
                error=error,
            )
        )
