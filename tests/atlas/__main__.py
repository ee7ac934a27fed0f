"""`python -m tests.atlas --folder DIR`: serve until standard input closes, or SIGTERM.

Prints one line, the URI, once it listens. What it stores is in DIR; nothing else is left behind.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from tests.atlas.server import Atlas


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.atlas", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the documents are stored")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--version", default="8.0.16", help="the release that it says it is")
    parser.add_argument("--username")
    parser.add_argument("--password")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds until a new search index is ready")
    parser.add_argument(
        "--rank-fusion",
        choices=("full", "basic", "off"),
        default="full",
        help="which of mongod's feature flags for $rankFusion are on; basic lacks scoreDetails",
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    atlas = Atlas(
        given.folder,
        port=given.port,
        version=given.version,
        delay=given.delay,
        user=given.username,
        password=given.password,
        rank_fusion=given.rank_fusion,
    )
    over = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: over.set())

    def wait_for_input() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        over.set()

    uri = atlas.start()
    sys.stdout.write(uri + "\n")
    sys.stdout.flush()
    threading.Thread(target=wait_for_input, daemon=True).start()
    over.wait()
    atlas.stop()


if __name__ == "__main__":
    main()
