"""The command `durable-context`. It imports next to nothing where another process does the serving."""

import sys

from mcp_server.standin import serve_by_fork


def main() -> int:
    """Run one command; the result is the process's exit status."""
    status = serve_by_fork(sys.argv[1:])
    if status is not None:
        return status
    from mcp_server.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
