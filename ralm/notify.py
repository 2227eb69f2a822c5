"""Tell people how a pipeline run ended: a JSON message to a webhook, which may fail without harm."""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from urllib.error import HTTPError

logger = logging.getLogger(__name__)
VARIABLE = "RALM_WEBHOOK_URL"
TIMEOUT_S = 10.0
TRIES = 3


def notify(message: Mapping[str, str]) -> bool:
    """Post a message to `$RALM_WEBHOOK_URL`; nothing is sent where it is not set.

    The address is a secret (whoever knows it can post) and is never logged. A server that fails is asked three times.

    Args:
        message: `text` is what chat services show; the other fields are for programs.

    Returns:
        True if a server took it.
    """
    url = os.environ.get(VARIABLE, "").strip()
    if not url:
        return False
    if not url.startswith(("https://", "http://")):
        logger.warning("notify: %s: expected an http or https address", VARIABLE)
        return False
    body = json.dumps(dict(message), ensure_ascii=False).encode()
    for tried in range(1, TRIES + 1):
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return True
        except HTTPError as error:
            reason, is_final = f"status {error.code}", error.code < 500 and error.code != 429
        except (OSError, ValueError, HTTPException) as error:
            reason, is_final = type(error).__name__, False
        if is_final:
            break
        if tried < TRIES:
            time.sleep(tried)
    logger.warning("notify: the webhook did not take the message: %s", reason)
    return False
