"""Reach a Kubeflow Pipelines server through kfp's own client.

All requests pass one gate: a time limit, repeats for reads only, and errors on one line without a secret in it.
"""

from __future__ import annotations

import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from ralm.errors import ConfigError, WorkerError

T = TypeVar("T")

PAUSES_S: Final = (0.5, 2.0)
"""Before a read is repeated, and before looking whether a request without an answer was carried out."""
IN_CLUSTER_HOST: Final = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
MAX_MESSAGE: Final = 400
"""Characters of what a server says that are shown."""
_TOKEN_HINT: Final = "give a token with --token-file or RALM_KFP_TOKEN"
_HINTS: Final = {
    403: "the account may not do this here: check --namespace, or have the right given",
    404: "check --host and --namespace",
}


class ServerError(WorkerError):
    """The server refused, failed or did not answer. Ends the command with 1: a `WorkerError` brings its own exit code.

    Args:
        message: host, status and what the server said.
        status: of HTTP; 0: no answer.
        is_open: True where the request may have been carried out all the same.
        exit_code: what the command ends with.
    """

    def __init__(self, message: str, *, status: int = 0, is_open: bool = False, exit_code: int = 1) -> None:
        super().__init__(message, exit_code=exit_code)
        self.status, self.is_open = status, is_open


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the server is and how it is spoken to."""

    host: str = ""
    """URL; empty: `$KFP_ENDPOINT`, `$KF_PIPELINES_ENDPOINT`, or the service of the cluster this runs in."""
    namespace: str = ""
    """The user's namespace; servers for one user have none."""
    token_file: str = ""
    """File with a bearer token, read again when it is needed; empty: `$RALM_KFP_TOKEN`, or that of the pod."""
    ca_file: str = ""
    """PEM file of the authorities to trust; empty: those of `certifi`."""
    timeout_s: float = 30.0
    """Limit of one request."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s: expected more than 0, found {self.timeout_s}")
        if self.ca_file and not Path(self.ca_file).is_file():
            raise ConfigError(f"ca_file: {self.ca_file}: no such file")

    def find_host(self) -> str:
        """The URL of the server, without a slash at its end.

        Raises:
            ConfigError: none is known, or it is no URL.
        """
        host = self.host or os.environ.get("KFP_ENDPOINT") or os.environ.get("KF_PIPELINES_ENDPOINT") or ""
        if not host and "KUBERNETES_SERVICE_HOST" in os.environ:
            host = IN_CLUSTER_HOST
        if not host:
            raise ConfigError("host: no Kubeflow Pipelines server: give --host URL or set KFP_ENDPOINT")
        try:
            parts = urlsplit(host)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets, or a port that is no number
            is_url = False
        if "@" in host:
            raise ConfigError(f"host: expected no user or password in it; {_TOKEN_HINT}")
        if not is_url:
            raise ConfigError(f"host: expected http://... or https://..., found {host!r}")
        return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")

    def find_credentials(self) -> dict[str, Any]:
        """The arguments of kfp's client that carry the token; none where there is no token.

        Raises:
            ConfigError: the token cannot be read or cannot be one. The message does not show it.
        """
        from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
        from kfp.client import ServiceAccountTokenVolumeCredentials as TokenFile

        if self.token_file:
            try:
                _check_token(Path(self.token_file).read_text(encoding="utf-8"), f"token_file {self.token_file}")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"token_file {self.token_file}: cannot be read: {type(error).__name__}") from None
            return {"credentials": TokenFile(path=self.token_file)}
        token = os.environ.get("RALM_KFP_TOKEN", "")
        if token:
            return {"existing_token": _check_token(token, "RALM_KFP_TOKEN")}
        projected = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH
        return {"credentials": TokenFile(path=projected)} if Path(projected).is_file() else {}


def _check_token(text: str, where: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected one line with a bearer token, found something else")
    return token


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A server that answered."""

    client: Any
    """A `kfp.Client`."""
    host: str
    namespace: str

    def link(self, page: str, number: str) -> str:
        """Address of a page of the UI, such as `runs`."""
        ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or self.host
        return f"{ui.rstrip('/')}/#/{page}/details/{number}"


class _Gate:
    """Stands in for the `request` of kfp's API client; all services of a client share that one."""

    def __init__(self, api_client: Any, host: str, timeout_s: float) -> None:
        import urllib3

        self._api_client, self._send = api_client, api_client.request
        self._host, self._timeout_s = host, timeout_s
        # Neither repeats nor redirects behind our back: a redirect is a login page, and a POST is sent once.
        api_client.rest_client.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(False)
        api_client.request = self.request

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Send a request and return the answer, which is JSON.

        Raises:
            ServerError: no good answer.
        """
        import urllib3
        from kfp_server_api import ApiException

        options["_request_timeout"] = (self._timeout_s, self._timeout_s)  # a bare float would be dropped
        pauses_s = PAUSES_S if method == "GET" else ()
        for pause_s in (*pauses_s, None):
            try:
                return self._check_answer(self._send(method, url, **options))
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                failure = self._explain(error)
            if pause_s is None or not failure.is_open:
                break
            time.sleep(pause_s)
        raise failure

    def _check_answer(self, response: Any) -> Any:
        try:
            json.loads(response.data)
        except ValueError:
            raise ServerError(
                f"{self._host}: answered {response.status} with something that is no JSON, as a login page does: "
                "check --host, and whether a token is needed",
                status=response.status,
            ) from None
        return response

    def _explain(self, error: Any) -> ServerError:
        from urllib3 import exceptions

        status = getattr(error, "status", None)
        if status:
            return self._explain_status(error)
        text, is_open = f"the connection broke before the answer came: {error}", True
        if isinstance(error, exceptions.ReadTimeoutError):
            text = f"no answer within {self._timeout_s:g} s"
        elif status == 0:  # how kfp's client says that TLS failed
            text, is_open = f"no secure connection: {error.reason}; --ca-file names authorities to trust", False
        elif isinstance(error, exceptions.ConnectTimeoutError | exceptions.LocationValueError):
            text, is_open = f"cannot connect: {str(error).partition(': ')[2] or error}", False
        return ServerError(self._clean(f"{self._host}: {text}"), is_open=is_open)

    def _explain_status(self, error: Any) -> ServerError:
        hint = _HINTS.get(error.status, "")
        if error.status == 401:
            hint = f"{'the token was not accepted' if self._secrets() else 'no token was sent'}; {_TOKEN_HINT}"
        elif 300 <= error.status < 400:
            target = (error.headers or {}).get("location", "").partition("?")[0]  # what follows may be a secret
            hint = f"redirects to {target}, as to a login page: check --host; {_TOKEN_HINT}"
        said = "; ".join(text for text in (self._clean(_message(error.body))[:MAX_MESSAGE], hint) if text)
        text = f"{self._host}: {error.status} {error.reason or ''}".rstrip() + (f": {said}" if said else "")
        return ServerError(text, status=error.status, is_open=error.status >= 500)

    def _secrets(self) -> list[str]:
        configuration = self._api_client.configuration
        return [secret for secret in (*configuration.api_key.values(), self._api_client.cookie) if secret]

    def _clean(self, text: str) -> str:
        """The text on one line, without what a server may have quoted of our secrets."""
        for secret in self._secrets():
            text = text.replace(secret, "[secret]")
        return " ".join(text.split())


def _message(body: Any) -> str:
    """What a server's error says: the gateway and the upload pages use different keys; a proxy sends HTML."""
    try:
        answer = json.loads(body)
        text = answer.get("message") or answer.get("error_message") or answer.get("error") or ""
    except (TypeError, ValueError, AttributeError):
        text = bytes(body or b"").decode(errors="replace")
        text = "" if text.lstrip().startswith("<") else text
    return str(text)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what kfp prints (links) and warns of (its own future) away from our output."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_kfp() -> None:
    """See that kfp is installed: the images of the stages have it without what its client needs.

    Raises:
        ConfigError: it is not.
    """
    try:
        import kfp.client
        import kfp.kubernetes  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"this needs the package {error.name}; install ralm-pipelines[kfp]") from error


def connect(server: Server) -> Remote:
    """Log in and see that it is a Kubeflow Pipelines server.

    Raises:
        ConfigError: no host, token or namespace, or no such API at the host.
        ServerError: it refused or did not answer.
    """
    host = server.find_host()
    require_kfp()
    import kfp

    class Client(kfp.Client):
        """kfp's client behind our gate; it asks for the server's health once and leaves the home folder alone."""

        health: Any = None

        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            if self.health is None:
                _Gate(self._healthz_api.api_client, host, server.timeout_s)
                self.health = self._healthz_api.healthz_service_get_healthz()
            return self.health

        def set_user_namespace(self, namespace: str) -> None:
            self._context_setting["namespace"] = namespace.strip()

    try:
        client = Client(
            host=host,
            namespace=server.namespace or "kubeflow",  # kfp's word for none; with a host it means nothing else
            ssl_ca_cert=server.ca_file or None,
            **server.find_credentials(),
        )
        health = client.get_kfp_healthz()
    except ServerError as error:
        if error.status == 404:
            raise ConfigError(f"host: no Kubeflow Pipelines API (v2beta1) at this address: {error}") from error
        raise
    namespace = server.namespace or client.get_user_namespace()
    if health.multi_user and not namespace:
        raise ConfigError(f"namespace: {host} is for several users; give --namespace")
    return Remote(client=client, host=host, namespace=namespace)


def create_once(post: Callable[[], T], find: Callable[[], T | None]) -> T:
    """Send a request that makes something, exactly once.

    Where the answer is lost, or says that it exists, look for it instead of sending the request again: two runs are
    worse than none.

    Args:
        post: sends the request.
        find: what `post` would have made, None where it is not there.

    Raises:
        ServerError: refused; or lost, and nothing of it is to be found so far.
    """
    try:
        return post()
    except ServerError as error:
        if not error.is_open and error.status != 409:
            raise
        lost = error
    note = "what was asked for is not there so far"
    try:
        for pause_s in PAUSES_S:
            time.sleep(pause_s)
            found = find()
            if found is not None:
                return found
    except ServerError as error:
        note = f"looking whether it was carried out failed as well: {error}"
    if lost.is_open:
        note += "; look at the server before you try again"
    raise ServerError(f"{lost}; {note}", status=lost.status, is_open=lost.is_open)
