"""The supervisor process: `python -m mcp_server.local DATA_FOLDER`, started by whoever needs the stack first."""

import logging
import os
import signal
import sys
from pathlib import Path

from mcp_server.local.stack import supervise

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.umask(0o077)
    # A terminal's Ctrl-C is for the process in the foreground; the leases tell when this one is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervise(Path(sys.argv[1]))
