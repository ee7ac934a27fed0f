"""`durable-context chat`: a conversation in a terminal, or over a pipe."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from activities.conversation import conversation_workflow_id, generation_id, stored_ids
from activities.models import (
    ConversationClosed,
    ConversationHistory,
    ConversationKey,
    ConversationReply,
    ConverseParams,
    HistoryMessage,
    HistoryParams,
    Source,
)
from mcp_server.logs import configure_logging
from mcp_server.runtime import CallError, Runtime, Started, explain_failure
from mcp_server.settings import Settings
from mcp_server.tools.arguments import MAX_TEXT
from mcp_server.tools.conversation import limits_of

POLL_SECONDS = 0.2
SHOWN_AT_ATTACH = 20
"""How many of the last messages are shown at the beginning."""

HELP = "/end ends the conversation, /image PATH TEXT shows an image, /history shows more, /quit or Ctrl-D leaves."


@dataclass
class ChatOptions:
    """What the command line says.

    Attributes:
        conversation_id: Which to attach to; None for a new one.
        uses: Which of use_cache, use_memory and use_search are on.
    """

    user_id: str
    conversation_id: str | None = None
    uses: dict[str, bool] = field(default_factory=dict)


async def chat(settings: Settings, options: ChatOptions) -> int:
    """Talk until the input ends; 0 where every message was answered."""
    configure_logging(settings.logs, "chat", settings.log_level)
    # The terminal is for the conversation; the log file has the rest.
    logging.getLogger().handlers[0].setLevel(logging.CRITICAL)
    runtime = Runtime(settings)
    async with runtime.running():
        return await Chat(runtime, options, Console(highlight=False, soft_wrap=True)).run()


class Chat:
    """
    Args:
        runtime: What reaches Temporal, and works.
        options: Which conversation.
        console: Where it is shown.
    """

    def __init__(self, runtime: Runtime, options: ChatOptions, console: Console) -> None:
        self._runtime = runtime
        self._user_id = options.user_id
        self._uses = options.uses
        self._begins = options.conversation_id is None
        self._id = options.conversation_id or f"chat-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        self._console = console
        self._on_terminal = console.is_terminal and sys.stdin.isatty()
        self._shown: set[str] = set()
        self._failed = False

    async def run(self) -> int:
        """Read a line, show its answer, and so on."""
        self._tell(f"conversation {self._id}" + (f". {HELP}" if self._on_terminal else ""))
        if not self._begins:
            await self._catch_up(SHOWN_AT_ATTACH)
        read = _terminal_line if self._on_terminal else _Piped().line
        while (line := await _in_thread(read)) is not None:
            if self._on_terminal:
                self._console.print()
            if not await self._obey(line.strip()):
                return int(self._failed)
        self._tell(f"It goes on with: durable-context chat --conversation {self._id}")
        return int(self._failed)

    async def _obey(self, line: str) -> bool:
        """Do what a line says; false where that was the last one."""
        command, _, rest = line.partition(" ")
        match command:
            case "":
                return True
            case "/quit":
                self._tell(f"It goes on with: durable-context chat --conversation {self._id}")
                return False
            case "/end":
                await self._guarded(self._end)
                return False
            case "/history":
                self._shown.clear()
                await self._catch_up(100)
            case "/image":
                path, _, text = rest.strip().partition(" ")
                await self._guarded(lambda: self._say(text.strip() or "What does this image show?", path))
            case "/help":
                self._tell(HELP)
            case _ if command.startswith("/") and command[1:].isalpha():
                self._tell(f"There is no command {command}. {HELP}")
            case _:
                await self._guarded(lambda: self._say(line, None))
        return True

    async def _guarded(self, work: Callable[[], Any]) -> None:
        """Say what goes wrong; the conversation goes on."""
        try:
            await work()
        except CallError as error:
            self._fail(str(error))
        except ApplicationError as error:
            self._fail(error.message)
        except WorkflowFailureError as error:
            self._fail(explain_failure(error))

    def _fail(self, message: str) -> None:
        self._failed = True
        print(f"durable-context: {message}", file=sys.stderr)

    def _tell(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    # Saying something

    async def _say(self, text: str, image: str | None) -> None:
        if len(text) > MAX_TEXT:
            raise CallError(f"A message may have {MAX_TEXT:,} characters; this one has {len(text):,}.")
        settings = self._runtime.settings
        call_id = f"converse-{uuid.uuid4().hex}"
        params = ConverseParams(
            user_id=self._user_id,
            conversation_id=self._id,
            prompt=text.encode("utf-8", "replace").decode(),
            image=await self._hold(image) if image is not None else None,
            limits=limits_of(settings),
            **self._uses,
        )
        from workflows.conversation import ConverseWorkflow

        await self._runtime.loaded()
        memo = {"task": {"tool": "converse", "owner": None, "arguments": ""}}
        deadline = time.monotonic() + settings.call_timeout_seconds
        started = await self._runtime.start(ConverseWorkflow, params, call_id, memo, deadline)
        self._show(await self._answer(started))

    async def _hold(self, path: str) -> Source:
        """Keep an image of this machine where its workflow finds it."""
        try:
            content = await asyncio.to_thread(Path(path).expanduser().read_bytes)
        except OSError as error:
            raise CallError(f"{path} can't be read: {error.strerror or error}.") from None
        name = uuid.uuid4().hex
        await self._runtime.contents.put(name, content)
        return Source(source=Path(path).name, content=name)

    async def _answer(self, started: Started) -> ConversationReply:
        """The answer to a message; on a terminal, what there is of it while it is being written."""
        result = asyncio.create_task(self._runtime.result(started))
        queue = self._runtime.settings.temporal_task_queue
        prompt_id, _ = stored_ids(conversation_workflow_id(queue, self._user_id, self._id), started.workflow_id)
        live = Live(Spinner("dots"), console=self._console, transient=True) if self._on_terminal else None
        with live or contextlib.nullcontext():
            while not result.done():
                await asyncio.wait({result}, timeout=POLL_SECONDS)
                if live is None or result.done():
                    continue
                with contextlib.suppress(CallError):
                    partial = await self._runtime.partial_answer(generation_id(prompt_id))
                    if partial is not None and partial.text:
                        lines = partial.text.splitlines()[-max(1, self._console.height - 4) :]
                        live.update(Text("\n".join(lines)))
        return ConversationReply.model_validate(await result)

    def _show(self, reply: ConversationReply) -> None:
        self._shown |= {reply.message_id, reply.answer_id}
        self._console.print(Text(reply.answer))
        notes = [reply.model]
        if reply.cached is not None:
            notes.append(f"cached {reply.cached.age_seconds:.0f} s ago, similarity {reply.cached.similarity:.2f}")
        if reply.invocations:
            used = (
                sum(one.input_tokens for one in reply.invocations),
                sum(one.output_tokens for one in reply.invocations),
            )
            notes.append(f"{used[0]} tokens in, {used[1]} out")
        notes += [f"called {call.tool}" for call in reply.tool_calls]
        if reply.stop_reason == "max_tokens":
            notes.append("cut off by CONVERSATION_ANSWER_TOKENS")
        self._tell("; ".join([*notes, *reply.warnings]))

    # What others said

    async def _catch_up(self, most: int) -> None:
        """Show what was said in the conversation and isn't shown yet."""
        from workflows.conversation import ConversationHistoryWorkflow

        params = HistoryParams(user_id=self._user_id, conversation_id=self._id, limit=most)
        try:
            found = await self._runtime.run(ConversationHistoryWorkflow, params, "conversation_history")
        except CallError as error:
            self._tell(f"Nothing was said in it yet ({error})." if "no conversation" in str(error) else str(error))
            return
        history = ConversationHistory.model_validate(found)
        if history.next_cursor is not None and history.summary and not self._shown:
            self._tell(f"Before: {history.summary}")
        for message in history.messages:
            if message.message_id not in self._shown:
                self._show_message(message)
        for text in history.waiting:
            self._tell(f"waiting for its answer: {text}")

    def _show_message(self, message: HistoryMessage) -> None:
        self._shown.add(message.message_id)
        who = "you" if message.message_type == "human" else "assistant"
        self._console.print(Text.assemble((f"{message.timestamp:%Y-%m-%d %H:%M} {who}: ", "bold"), message.text))

    async def _end(self) -> None:
        from workflows.conversation import ConversationEndWorkflow

        key = ConversationKey(user_id=self._user_id, conversation_id=self._id)
        ended = ConversationClosed.model_validate(
            await self._runtime.run(ConversationEndWorkflow, key, "end_conversation")
        )
        self._tell(f"Ended. Its summary: {ended.summary}" if ended.summary else "Ended.")


# Input


async def _in_thread(read: Callable[[], str | None]) -> str | None:
    """What `read` returns, in a thread that doesn't keep the process from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str | None] = loop.create_future()

    def settle(line: str | None) -> None:
        if not answer.done():
            answer.set_result(line)

    def work() -> None:
        line = read()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, line)

    threading.Thread(target=work, name="input", daemon=True).start()
    return await answer


def _terminal_line() -> str | None:
    """A line that is typed, with the editing and history of readline where there is one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    try:
        return input("> ")
    except EOFError:
        return None


class _Piped:
    """Lines of a pipe or a file. Python's own reader would keep a process from ending that is still waiting for one."""

    def __init__(self) -> None:
        self._rest = b""

    def line(self) -> str | None:
        while b"\n" not in self._rest:
            piece = os.read(0, 65_536)
            if not piece:
                last, self._rest = self._rest, b""
                return last.decode("utf-8", "replace") if last else None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "replace")
