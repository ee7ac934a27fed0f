"""`durable-context demo`: the whole thing once, on the embedded stack, as a client sees it."""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent
from rich.console import Console
from rich.markup import escape
from temporalio.client import Client as TemporalClient

from activities.memory import memory_workflow_id
from mcp_server.local.stack import is_running, leased
from mcp_server.runtime import connect_embedded
from mcp_server.settings import Settings
from mcp_server.tasks import WORKFLOW_ID
from workflows.history import steps_of

CORPUS = Path(__file__).parent / "corpus"

# The demo shows the embedded stack, whatever else is set up on the machine; only a key for web search is used.
KEPT = {"TAVILY_API_KEY", "TAVILY_BASE_URL"}

console = Console(highlight=False, soft_wrap=True)


def embedded_environment(home: Path) -> dict[str, str]:
    """What a process that is to use the embedded stack of `home`, and nothing remote, is started with."""
    ours = {name.upper() for name in Settings.model_fields} - KEPT
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in ours and not name.startswith(("AWS_", "TEMPORAL_"))
    }
    return kept | {"DURABLE_CONTEXT_HOME": str(home), "LOG_LEVEL": "ERROR"}


class Demo:
    """One client session, told to a person."""

    def __init__(self, client: Client, temporal: TemporalClient) -> None:
        self._client = client
        self._temporal = temporal

    async def call(self, tool: str, **arguments: Any) -> CallToolResult:
        """Call a tool, and show which workflow ran and how long each of its steps took."""
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        console.print(f"\n[bold]{tool}[/]([dim]{escape(shown)}[/])")
        start = time.perf_counter()
        result = await self._client.call_tool(tool, arguments)
        took = (time.perf_counter() - start) * 1e3
        workflow_id = (result.meta or {}).get(WORKFLOW_ID)
        if workflow_id:
            steps = await steps_of(self._temporal, workflow_id)
            parts = [f"{took:.0f} ms in all", *(f"{step.name} {step.milliseconds:.0f} ms" for step in steps)]
            console.print(f"  [cyan]workflow {workflow_id}: {', '.join(parts)}[/]")
        if result.is_error:
            text = " ".join(block.text for block in result.content if isinstance(block, TextContent))
            console.print(f"  [yellow]tool error: {escape(text)}[/]")
        return result

    async def run(self) -> None:
        """Every tool, the prompt and the resources."""
        tools = await self._client.list_tools()
        console.print(f"tools: {', '.join(tool.name for tool in tools.tools)}")

        await self._search("How do insects with no leader settle an argument about where to live?")
        await self._search("How many seconds slow was H4 when it reached Jamaica?", limit=1)
        # In a PDF, a Word document and a web page.
        await self._search("What did Fresnel cut a lens into?", limit=1)
        await self._search("Who carried a coffee plant to Martinique?", limit=1)
        await self._search("When was a dodo seen for the last time?", limit=1)

        text = "# Tide table\n\nHigh water at Dover is at 11:40 on Tuesday."
        ingested = _content(await self.call("ingest_documents", text=text, name="tide-table"))["sources"][0]
        console.print(f"  {ingested['status']} in {ingested['chunks']} chunk: document://{ingested['document_id']}")
        await self._client.read_resource(f"document://{ingested['document_id']}")
        console.print("  read again as a resource")
        await self._search("When is high water on Tuesday?", limit=1)

        conversation = (
            ("human", "My sister Ines lives in Lisbon.", "2026-03-01"),
            ("human", "Please remember that I'm allergic to hazelnuts.", "2026-03-02"),
            ("ai", "I'll keep in mind that hazelnuts are out.", "2026-03-02"),
            ("human", "My sister Ines lives in Lisbon with her two children.", "2026-03-03"),
            ("human", "We're planning to visit her in the second week of October.", "2026-03-04"),
            ("ai", "October is mild there; you should book the flights by July.", "2026-03-04"),
        )
        for message_type, text, day in conversation:
            stored = await self.call(
                "store_memory",
                conversation_id="travel",
                text=text,
                message_type=message_type,
                timestamp=f"{day}T09:00:00Z",
            )
            console.print(f"  stored; a memory is being formed: {_content(stored)['memory_forming']}")
        await self._memories_formed()

        task = {"task_id": (stored.meta or {})[WORKFLOW_ID]}
        console.print(f"  {_content(await self.call('task_status', **task))['status']}")
        console.print(f"  {_content(await self.call('cancel_task', **task))['status']}: it had ended")

        recalled = _content(await self.call("retrieve_memory", text="When are we going to see my sister?", limit=3))
        for message in recalled["related_conversation"]:
            said = f"{message['timestamp'][:10]} {message['message_type']}: {escape(message['text'])}"
            console.print(f"  {message['score']:.2f}  {said}")
        console.print(f"  summary ({recalled['summary_model']}): {escape(recalled['conversation_summary'])}")
        for memory in recalled["similar_memories"]:
            console.print(f"  memory, importance {memory['importance']:.2f}: {escape(memory['summary'])}")

        listed = _content(await self.call("list_memories"))["memories"]
        for memory in listed:
            children = f", of {len(memory['children'])}" if memory["children"] else ""
            said = escape(" / ".join(memory["content"].splitlines()))
            console.print(f"  strength {memory['strength']:.2f}{children}: {said}")
        parent = next(memory["memory_id"] for memory in listed if memory["children"])
        await self.call("pin_memory", memory_id=parent)
        split = _content(await self.call("split_memory", memory_id=parent))
        console.print(f"  {len(split['children'])} memories stand alone again, pinned")

        question = "What is the capital of Portugal?"
        self._tell(await self.call("check_semantic_cache", query=question))
        await self.call("semantic_cache_response", query=question, response="Lisbon.", ttl_seconds=3600)
        self._tell(await self.call("check_semantic_cache", query=question))
        self._tell(await self.call("check_semantic_cache", query="What's the capital city of Portugal?"))
        self._tell(await self.call("check_semantic_cache", query="How long does a sourdough loaf bake?"))
        await self.call("invalidate_cache", query=question)
        self._tell(await self.call("check_semantic_cache", query=question))

        await self._converse()

        unwanted = {"query": "hazelnuts", "limit": 1}
        shown = _content(await self.call("forget", **unwanted))
        for match in shown["matches"]:
            console.print(f"  would forget a {match['kind']}: {escape(match['text'])}")
        forgotten = _content(await self.call("forget", **unwanted, confirmation=shown["confirmation"]))
        console.print(f"  forgotten: {forgotten['messages']} messages, {forgotten['memories']} memories")

        web = await self.call("search_web", query="Temporal durable execution", max_results=2)
        if web.is_error and "TAVILY_API_KEY" not in os.environ:
            console.print("  (as is to be expected: it is the one tool that needs a key of yours)")
        for found in (web.structured_content or {}).get("results", []):
            console.print(f"  {found['score']:.2f}  {escape(found['title'])}  {found['url']}")

        prompt = await self._client.get_prompt(
            "conversation_prompt",
            {"user_id": "default", "conversation_summary": recalled["conversation_summary"]},
        )
        console.print(f"\nprompt conversation_prompt: {len(prompt.messages)} message")
        for uri in ("health://status", "config://settings"):
            await self._client.read_resource(uri)
            console.print(f"resource {uri}: read")

    async def _search(self, query: str, limit: int = 3) -> None:
        found = _content(await self.call("hybrid_search", query=query, limit=limit))
        for hit in found["results"]:
            legs = f"vector {_number(hit['vector_score'])}, text {_number(hit['text_score'])}"
            text = " ".join(hit["text"].split())
            where = " > ".join(dict.fromkeys([hit["metadata"]["title"], *hit["metadata"].get("headings", [])]))
            page = f", page {hit['metadata']['page']}" if "page" in hit["metadata"] else ""
            console.print(f"  {hit['score']:.2f} ({legs})  [green]{escape(where)}{page}[/]: {escape(text[:120])}…")

    async def _converse(self) -> None:
        """A short conversation, which draws on a document and on what was said before."""
        for prompt in (
            "What did Fresnel cut a lens into?",
            "Who carried a coffee plant to Martinique?",
            "Where does my sister live?",
        ):
            reply = _content(await self.call("converse", prompt=prompt, conversation_id="demo"))
            console.print(f"  [green]{escape(reply['answer'])}[/]")
            for one in reply["invocations"]:
                used = f"{one['input_tokens']} tokens in, {one['output_tokens']} out, {one['latency_ms']} ms"
                console.print(f"  [dim]{one['model_id']}, prompt {one['system_version']}: {used}[/]")
        again = _content(await self.call("converse", prompt="What did Fresnel cut a lens into?", conversation_id="new"))
        cached = again["cached"]
        console.print(
            f"  cached: {cached['question']}, {cached['age_seconds']:.1f} s ago" if cached else "  not cached"
        )
        told = _content(await self.call("conversation_history", conversation_id="demo"))
        console.print(f"  {len(told['messages'])} messages, open: {told['is_open']}")
        ended = _content(await self.call("end_conversation", conversation_id="demo"))
        console.print(f"  summary: {escape(ended['summary'])}")

    async def _memories_formed(self) -> None:
        """Wait until the memories that the messages set off have formed, in the user's workflow."""
        workflow_id = memory_workflow_id("durable-context", "default")
        async with asyncio.timeout(30):
            await self._temporal.get_workflow_handle(workflow_id).result()
        console.print(f"\n[cyan]workflow {workflow_id}: nothing is left to do for the user's memory[/]")

    @staticmethod
    def _tell(result: CallToolResult) -> None:
        content = _content(result)
        similarity = _number(content["similarity"])
        console.print(
            f"  hit, similarity {similarity}: {content['response']}"
            if content["hit"]
            else f"  miss, nearest {similarity}"
        )


def _content(result: CallToolResult) -> dict[str, Any]:
    if result.is_error or result.structured_content is None:
        raise RuntimeError("a tool that the demo depends on failed: see above")
    content: dict[str, Any] = result.structured_content
    return content


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


async def _ingest(environment: dict[str, str], home: Path) -> None:
    for attempt in ("first", "again, unchanged"):
        console.print(f"\n[bold]durable-context ingest[/] sample documents ({attempt})")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_server.cli", "ingest", str(CORPUS)), env=environment, cwd=home
        )
        if await process.wait() != 0:
            raise RuntimeError("the sample documents can't be ingested: see above")


async def demo() -> int:
    """Run the demo in a temporary data folder; 0 once everything has been shown and every process has ended."""
    with tempfile.TemporaryDirectory(prefix="durable-context-demo-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        environment = embedded_environment(home)
        console.print(f"data folder: {home}")
        try:
            async with leased(home, ["temporal", "models"]) as addresses:
                assert addresses.temporal is not None
                console.print(f"embedded stack: Temporal at {addresses.temporal}, web UI at {addresses.temporal_ui}")
                temporal = await connect_embedded(addresses.temporal)
                await _ingest(environment, home)
                server = StdioServerParameters(
                    command=sys.executable, args=["-m", "mcp_server.cli", "serve"], env=environment, cwd=home
                )
                async with Client(stdio_client(server)) as client:
                    await Demo(client, temporal).run()
        except RuntimeError as error:
            print(f"durable-context: {error}", file=sys.stderr)
            return 1
        async with asyncio.timeout(15):
            while is_running(home):
                await asyncio.sleep(0.05)
        console.print("\nEverything ended; nothing is left behind.")
    return 0
