"""What the errors of MongoDB's driver and of Atlas mean to a tool's caller. No driver here: errors go by their names.

Their own words may hold the records' contents and the connection string's secrets, so none of them are passed on.
"""

import logging
from dataclasses import dataclass

from temporalio.exceptions import ApplicationError

from activities.errors import failure

logger = logging.getLogger(__name__)

_PASSING = frozenset({6, 7, 24, 50, 64, 89, 91, 112, 189, 202, 211, 246, 251, 262, 317, 358, 9001})
"""Codes of errors that pass by themselves, besides those of a node that isn't primary: MongoDB's error_codes.yml."""
_NOT_PRIMARY = frozenset({10058, 10107, 11600, 11602, 13435, 13436})


@dataclass(frozen=True)
class Refusal:
    """What the driver says of a command that failed.

    Attributes:
        kinds: Names of the error's class and of those it derives from.
        code: The server's code, where the server refused it.
        name: The code's name.
        labels: The error labels that decide whether it passes.
        text: The message, to be looked at only.
    """

    kinds: frozenset[str]
    code: int | None
    name: str
    labels: frozenset[str]
    text: str


def refusal_of(error: Exception) -> Refusal:
    """The same of an exception of the driver."""
    details = getattr(error, "details", None) or {}
    code = getattr(error, "code", None)
    if details.get("writeErrors"):
        code = details["writeErrors"][0].get("code")
    labels = {label for label in ("RetryableWriteError", "TransientTransactionError") if _has(error, label)}
    kinds = frozenset(one.__name__ for one in type(error).__mro__)
    name = str(details.get("codeName", type(error).__name__))
    return Refusal(kinds, code, name, frozenset(labels), str(error).lower())


def _has(error: Exception, label: str) -> bool:
    has_error_label = getattr(error, "has_error_label", None)
    return bool(has_error_label and has_error_label(label))


def explain(error: Exception, database: str, connections: int) -> ApplicationError:
    """What an error of the driver means to the tool's caller.

    Args:
        error: Raised by the driver.
        database: Name of the database.
        connections: Size of the connection pool.
    """
    refusal = refusal_of(error)
    kinds, text, code = refusal.kinds, refusal.text, refusal.code
    if "InvalidURI" in kinds:
        return failure(
            "not_configured",
            "MONGODB_URI isn't a connection string: copy it from Atlas (Connect, Drivers), and percent-encode special "
            "characters of its user and password.",
        )
    if "ConfigurationError" in kinds:
        return _explain_configuration(text)
    if "DocumentTooLarge" in kinds:
        return _too_large()
    if "UnicodeEncodeError" in kinds or ("BSONError" in kinds and ("utf-8" in text or "surrogate" in text)):
        return failure("rejected", "the text holds a lone surrogate, which isn't valid Unicode")
    if "OverflowError" in kinds:
        return failure("rejected", "an integer doesn't fit into the 64 bits that the store keeps")
    if "BSONError" in kinds:
        return failure("rejected", "the record holds something that MongoDB can't keep: see its metadata's names")
    if "WaitQueueTimeoutError" in kinds:
        return failure(
            "unavailable",
            f"all {connections} connections to Atlas are in use; the call is retried. If it happens often, run more "
            "workers, or raise maxPoolSize in MONGODB_URI.",
        )
    if "NotPrimaryError" in kinds:
        return failure("unavailable", "Atlas is electing another primary; the call is retried")
    if "NetworkTimeout" in kinds or "ExecutionTimeout" in kinds:
        return failure("unavailable", "Atlas took too long over a command; the call is retried")
    if "ConnectionFailure" in kinds and code is None:
        return _explain_connection(text)
    if "InvalidOperation" in kinds:
        return failure("unavailable", "the store isn't open")
    if code == 11000:
        return failure("rejected", "the record's id already belongs to another record")
    if code in _NOT_PRIMARY or "RetryableWriteError" in refusal.labels:
        return failure("unavailable", "Atlas is electing another primary; the call is retried")
    return _explain_refusal(refusal, database)


def unusable(error: Exception) -> ApplicationError:
    """What it means that the driver takes a connection string for none, or can't read a file that it names."""
    if isinstance(error, OSError) and error.strerror:
        return failure("not_configured", f"a file that MONGODB_URI names can't be used: {error.strerror}")
    return failure(
        "not_configured", "MONGODB_URI holds a port or an option that can't be used: copy it anew from Atlas."
    )


def _explain_refusal(refusal: Refusal, database: str) -> ApplicationError:
    """What it means that the server took a command and refused it."""
    code, lower = refusal.code, refusal.text
    if code == 18 or (code == 8000 and "auth" in lower):
        return failure(
            "access_denied",
            "Atlas refused the user or the password of MONGODB_URI: check both under Database Access, and "
            "percent-encode special characters.",
        )
    if code == 13 or (code == 8000 and ("not allowed" in lower or "not authorized" in lower)):
        return failure(
            "access_denied",
            f"the user of MONGODB_URI may not do this in database {database}: give it the role readWrite "
            "there under Database Access, and for `durable-context index` also dbAdmin.",
        )
    if code in (59, 115, 31082, 31083, 40324, 6047401) or "searchnotenabled" in lower:
        return failure(
            "not_configured",
            "the server behind MONGODB_URI has no Atlas Search: use MongoDB Atlas (flex or dedicated) or the image "
            "mongodb/mongodb-atlas-local.",
        )
    if "maximum number" in lower and "index" in lower:
        return failure(
            "not_configured",
            "this Atlas cluster allows no more search indexes. The store needs six: use a flex or dedicated "
            "cluster, or drop other search indexes.",
        )
    if ("indexed" in lower and ("dimensions" in lower or "needs to be" in lower)) or code == 27:
        return failure(
            "not_configured",
            "a search index doesn't fit this version or the embedding model: run `durable-context index --check`, "
            "then `durable-context index`.",
        )
    if code in (10334, 17280) or "bsonobjecttoolarge" in lower or "object to insert too large" in lower:
        return _too_large()
    if code in _PASSING or "TransientTransactionError" in refusal.labels:
        return failure("unavailable", "Atlas couldn't do it just now; the call is retried")
    logger.debug("Atlas refused a command: %s, code %s", refusal.name, code)
    return failure("rejected", f"Atlas refused the command ({refusal.name}, code {code}).")


def _explain_configuration(text: str) -> ApplicationError:
    if "does not exist" in text or "nxdomain" in text:
        return failure(
            "not_configured",
            "the host of MONGODB_URI isn't known to DNS: check its spelling, and in Atlas that the cluster exists "
            "and isn't paused.",
        )
    if "resolution lifetime" in text or "nameserver" in text or "timed out" in text:
        return failure("unavailable", "the host of MONGODB_URI can't be looked up: DNS doesn't answer")
    return failure(
        "not_configured", "MONGODB_URI has options that can't be used: copy it anew from Atlas (Connect, Drivers)."
    )


def _explain_connection(text: str) -> ApplicationError:
    """What it means that no server could be reached, or that a connection broke."""
    if "authentication failed" in text or "bad auth" in text:
        return failure("access_denied", "Atlas refused the user or the password of MONGODB_URI: check both.")
    if "tlsv1 alert internal error" in text or "tlsv1_alert_internal_error" in text:
        return failure(
            "unavailable",
            "Atlas closes the connection: this machine's IP address isn't in the project's IP access list (Atlas, "
            "Network Access).",
        )
    if "certificate verify failed" in text:
        return failure(
            "unavailable",
            "the certificate of the server behind MONGODB_URI can't be verified: check the host, this machine's "
            "clock and its CA certificates (tlsCAFile).",
        )
    if "ssl handshake" in text or "[ssl" in text or "tlsv1" in text:
        return failure(
            "unavailable",
            "the TLS handshake with the server behind MONGODB_URI fails: Atlas needs TLS; add tls=false only for a "
            "server without it.",
        )
    if "temporary failure in name resolution" in text:
        return failure("unavailable", "the host of MONGODB_URI can't be looked up: DNS doesn't answer")
    if "name or service not known" in text or "nodename nor servname" in text or "getaddrinfo" in text:
        return failure(
            "unavailable",
            "the host of MONGODB_URI isn't known to DNS: check its spelling, and in Atlas that the cluster exists "
            "and isn't paused.",
        )
    # What follows describes each server, and calls a replica set of which none answers one without a primary.
    if "primary" in text.partition(", topology description:")[0]:
        return failure("unavailable", "Atlas has no primary just now (an election, or maintenance)")
    if "connection refused" in text:
        return failure("unavailable", "nothing listens at the host and port of MONGODB_URI")
    if "closed" in text or "reset" in text or "broken pipe" in text:
        return failure("unavailable", "the connection to Atlas broke; the call is retried")
    return failure(
        "unavailable",
        "no server behind MONGODB_URI answers: check that the cluster isn't paused or still resuming (Atlas, "
        "Database), that this machine's IP address is in the access list (Network Access), and that its firewall "
        "lets TCP 27015-27017 out.",
    )


def _too_large() -> ApplicationError:
    return failure("rejected", "the record is too large: MongoDB takes 16 MB with everything in it")
