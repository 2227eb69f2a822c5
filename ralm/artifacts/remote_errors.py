"""What object stores and their clients raise, as one error that says what to check."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from ralm.errors import RalmError, StorageDownError, StorageError

_CLIENTS = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "s3fs", "gcsfs", "adlfs", "azure", "google")
"""Top packages whose errors come from an object store or the way to it."""
_NO_ENTRY = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "TokenRetrieval", "UnauthorizedSSOToken")
_REFUSED = {
    "401",
    "403",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_ELSEWHERE = {"301", "307", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
_NAMES = ("InvalidBucketName", "ParamValidation")
_CUT_OFF = ("AioReadTimeoutError", "ClientPayloadError", "IncompleteReadError", "ResponseStreamingError")


@contextlib.contextmanager
def reaching(location: str) -> Iterator[None]:
    """Turn what an object store's client raises inside into a `StorageError`; `FileNotFoundError` stays as it is.

    Raises:
        StorageError: no access, or no such bucket.
        StorageDownError: no answer after all attempts.
    """
    try:
        yield
    except RalmError:
        raise
    except Exception as error:
        code = _code(error)
        if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
            raise
        if not _is_of_store(error):
            raise
        raise explain(error, location) from error


def explain(error: BaseException, location: str) -> StorageError:
    """What went wrong at the object store, in words.

    Example:
        >>> str(explain(PermissionError("Forbidden"), "gs://bucket/x"))
        'gs://bucket/x: the object store refuses access (Forbidden); check the credentials of gs://'
    """
    is_s3 = location.startswith(("s3://", "s3a://"))
    bucket, code, why = location.partition("://")[2].partition("/")[0], _code(error), _why(error)
    place = f"the object store at {_endpoint()}" if is_s3 else "the object store"
    if isinstance(error, PermissionError) or code in _REFUSED or _is_one_of(error, _NO_ENTRY):
        keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), the rights of this key on the bucket"
        check = f"{keys}, and AWS_ENDPOINT_URL" if is_s3 else f"the credentials of {location.partition('://')[0]}://"
        return StorageError(f"{location}: {place} refuses access ({why}); check {check}")
    if code == "NoSuchBucket" or _is_one_of(error, _NAMES):
        check = " and AWS_ENDPOINT_URL" if is_s3 else ""
        return StorageError(f"{location}: {place} has no bucket {bucket!r}; make it, or check the address{check}")
    if code in _ELSEWHERE:
        return StorageError(f"{location}: {place} keeps {bucket!r} in another region ({why}); check AWS_DEFAULT_REGION")
    if type(error) is ValueError:
        return StorageError(f"{location}: {why}; check {'AWS_ENDPOINT_URL' if is_s3 else 'the address'}")
    check = " and AWS_ENDPOINT_URL" if is_s3 else ""
    return StorageDownError(
        f"{location}: {place} gave no good answer, also after several attempts ({why}); check the network{check}, "
        "then run the same command again"
    )


def is_cut_off(error: BaseException) -> bool:
    """True where an answer began and broke off; the client does not ask for its rest by itself."""
    return type(error).__name__ in _CUT_OFF or isinstance(error, ConnectionError)


def _is_of_store(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in _CLIENTS or str(error).startswith("Invalid endpoint")


def _is_one_of(error: BaseException, names: tuple[str, ...]) -> bool:
    """By name: the packages that define them may not be installed."""
    return any(kind.__name__.removesuffix("Error") in names for kind in type(error).__mro__)


def _code(error: BaseException) -> str:
    """The store's own error code; s3fs keeps its answer as the cause."""
    for found in (error, error.__cause__):
        answer: Any = getattr(found, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
    return ""


def _why(error: BaseException) -> str:
    code, text = _code(error), " ".join(str(error).split()) or type(error).__name__
    return text if not code or code in text or code.isdigit() else f"{code}: {text}"


def _endpoint() -> str:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    return re.sub(r"//[^/]*@", "//", url)
