"""An ASGI server that leaves signals to whoever runs it."""

from collections.abc import Generator
from contextlib import contextmanager

import uvicorn


class EmbeddedServer(uvicorn.Server):
    """uvicorn inside a process that has other things to end in order: it stops by `should_exit` only."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
