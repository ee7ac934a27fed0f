"""How an activity says that it failed: one class for each error, chosen once, where the error is caught."""

from datetime import timedelta
from typing import Literal, get_args

from temporalio.exceptions import ApplicationError

Kind = Literal[
    "throttled",
    "unavailable",
    "rejected",
    "access_denied",
    "not_configured",
    "over_limit",
    "model_mismatch",
]

KINDS: frozenset[str] = frozenset(get_args(Kind))

PROTOCOL_ERROR = "protocol_error"
"""Type of the failure that a call is answered with as an error of JSON-RPC, not as a tool's; its code is its detail."""

RETRYABLE: frozenset[Kind] = frozenset({"throttled", "unavailable"})
"""Kinds that pass by themselves: throttling, time-outs, 5xx, network, a locked database."""


def failure(kind: Kind, message: str, retry_after: timedelta | None = None) -> ApplicationError:
    """An error for Temporal, retried exactly when its kind passes by itself.

    Args:
        kind: What went wrong; it becomes the failure's `type` in the workflow history.
        message: One or two sentences for the tool's caller: what failed, which setting or argument, what to do.
            It reaches clients and histories, so it never holds a secret or another user's data.
        retry_after: How long to wait before it is tried again; None for what the retry policy says.
    """
    return ApplicationError(message, type=kind, non_retryable=kind not in RETRYABLE, next_retry_delay=retry_after)
