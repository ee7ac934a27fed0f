"""Processes of the embedded stack.

`python -m mcp_server.local DATA_FOLDER` is the supervisor, started by whoever needs the stack first, and
`python -m mcp_server.local DATA_FOLDER fork` its fork server.
"""

import logging
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    os.umask(0o077)
    # A terminal's Ctrl-C is for the process in the foreground; the leases tell when the supervisor is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[2:] == ["fork"]:
        from mcp_server.local import forkserver

        forkserver.run(Path(sys.argv[1]))
    else:
        from mcp_server.local.stack import supervise

        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        supervise(Path(sys.argv[1]))
