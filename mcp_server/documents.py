"""`durable-context documents`: list and remove what was ingested."""

import sys
import uuid
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from activities.models import ListDocumentsParams, SourceRemoval
from mcp_server.ingest import connected
from mcp_server.settings import Settings
from workflows.documents import DocumentListWorkflow, DocumentRemovalWorkflow

PAGE = 500


async def list_documents(settings: Settings, user_id: str, collection: str | None) -> int:
    """Print a user's documents, a line each: id, stored when, chunks, collection, source; 0.

    Raises:
        SettingsError: where a piece of the stack is missing.
    """
    console = Console(highlight=False, soft_wrap=True)
    count = chunks = 0
    async with connected(settings, "documents") as (runtime, client):
        params = ListDocumentsParams(user_id=user_id, collection=collection, limit=PAGE)
        while True:
            page = await client.execute_workflow(
                DocumentListWorkflow.run,
                params,
                id=f"list_documents-{uuid.uuid4().hex}",
                task_queue=runtime.settings.temporal_task_queue,
            )
            for one in page.sources:
                count, chunks = count + 1, chunks + one.chunks
                console.print(
                    f"{one.document_id}  {one.stored_at:%Y-%m-%d %H:%M}  {one.chunks:>6}  "
                    f"[cyan]{escape(one.collection)}[/]  {escape(one.source)}"
                )
            if page.next_cursor is None:
                break
            params = params.model_copy(update={"cursor": page.next_cursor})
    console.print(f"{count} documents in {chunks} chunks")
    return 0


async def remove_documents(settings: Settings, sources: list[str], user_id: str, collection: str | None) -> int:
    """Remove documents by source or id; 0 where all of them were there.

    Raises:
        SettingsError: where a piece of the stack is missing.
    """
    missing = 0
    async with connected(settings, "documents") as (runtime, client):
        for source in sources:
            # As it is listed; a file is stored by its absolute path.
            for name in dict.fromkeys([source, str(Path(source).resolve())]):
                removed = await client.execute_workflow(
                    DocumentRemovalWorkflow.run,
                    SourceRemoval(user_id=user_id, collection=collection, source=name),
                    id=f"remove_document-{uuid.uuid4().hex}",
                    task_queue=runtime.settings.temporal_task_queue,
                )
                if removed.chunks:
                    print(f"removed {source}: {removed.chunks} chunks")
                    break
            else:
                missing += 1
                print(
                    f"durable-context: no document is called {source}; `durable-context documents list` shows what "
                    "there is.",
                    file=sys.stderr,
                )
    return 1 if missing else 0
