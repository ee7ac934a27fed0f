"""Logging: to stderr, and to a rotated file in the data folder. Never to stdout, which is the protocol's."""

import logging
import os
import sys
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FILE_BYTES = 5 * 1024 * 1024
FILES_KEPT = 20


class _WordedFailures(logging.Filter):
    """Leaves the stack trace off failures that were worded for the caller: they are expected, and say it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        from temporalio.exceptions import ApplicationError

        if record.exc_info and isinstance(record.exc_info[1], ApplicationError):
            record.msg, record.args = f"an activity failed: {record.exc_info[1]}", ()
            record.exc_info = None
        return True


def configure_logging(folder: Path, role: str, level: str) -> None:
    """Log to stderr and to a file of this process's own, so that rotation never races another process.

    Args:
        folder: Where log files go; made where it is missing, and the oldest files beyond FILES_KEPT are removed.
        role: What this process is, the first part of the file's name.
        level: Least severe level logged.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob(f"{role}-*.log*"), reverse=True)[FILES_KEPT:]:
            old.unlink(missing_ok=True)
        name = f"{role}-{datetime.now():%Y%m%dT%H%M%S}-{os.getpid()}.log"
        handlers.append(RotatingFileHandler(folder / name, maxBytes=FILE_BYTES, backupCount=2, encoding="utf-8"))
    except OSError as error:
        print(f"durable-context: no log file in {folder}: {error.strerror}", file=sys.stderr)  # noqa: T201
    logging.basicConfig(level=level, format=FORMAT, handlers=handlers, force=True)
    if level != "DEBUG":
        logging.getLogger("temporalio.activity").addFilter(_WordedFailures())
    # These say at INFO or DEBUG what was asked and answered.
    for noisy in (
        "httpx",
        "httpcore",
        "botocore",
        "urllib3",
        "pymongo",
        "mcp.server.lowlevel.server",
        "temporalio.worker",
        "sse_starlette",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
