"""The calls of `bench.chaos`: what each client does in which order, and what it is told.

A client's calls are drawn from the seed alone, whatever becomes of them. Each is about one thing, a message, an answer
or a document, which no other client touches. Once a call that changes a thing wasn't answered with its result, the
client leaves that thing alone: what was done to a thing was done in the order of its calls.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from mcp import Client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from bench.chaos_stage import Stage, address
from mcp_server.tasks import IDEMPOTENCY_KEY, WORKFLOW_ID

Kind = Literal["message", "answer", "document"]
Outcome = Literal["done", "goes on", "failed", "no answer"]

ANSWER_SECONDS = 20.0
"""How long a client waits for an answer; a server gives one after CALL_TIMEOUT_SECONDS."""
CONNECT_SECONDS = 20.0
SHARED = "everybody"
"""A user for whom every client stores messages, all in one conversation."""

_WEIGHTS = {
    "store_memory": 26,
    "semantic_cache_response": 15,
    "ingest_documents": 13,
    "retrieve_memory": 10,
    "check_semantic_cache": 13,
    "hybrid_search": 9,
    "invalidate_cache": 5,
    "forget": 6,
    "list_memories": 3,
}
_PLACES = ("harbour", "orchard", "attic", "cellar", "garden", "library", "workshop", "station")
_OBJECTS = ("telescope", "violin", "compass", "lantern", "ledger", "barometer", "kettle", "sextant")


@dataclass
class Thing:
    """What calls are about.

    Attributes:
        name: A conversation, a question, or a document's name.
        mark: A word that is in every text of it, and nowhere else.
        calls: Those that change it, in order.
    """

    kind: Kind
    user: str
    name: str
    mark: str
    calls: list["Call"] = field(default_factory=list)

    @property
    def certain(self) -> bool:
        """Whether every call that changed it was answered with its result."""
        return all(call.outcome == "done" for call in self.calls)

    @property
    def value(self) -> str | None:
        """What it holds, where that is certain; None for nothing."""
        return self.calls[-1].puts if self.calls else None


@dataclass
class Call:
    """One call of a tool, and what was answered.

    Attributes:
        puts: The text that the thing has once the call is done; None where it is gone then.
        changes: Whether it changes a thing.
        said: The text of the answer, or what kept it from coming.
        result: The structured content of an answer that is a result.
        untrue: What is wrong with the answer.
        ended: Whether the client has asked for the work to be cancelled.
    """

    number: int
    client: str
    tool: str
    arguments: dict[str, Any]
    thing: Thing | None
    changes: bool = False
    puts: str | None = None
    key: str | None = None
    outcome: Outcome = "no answer"
    said: str = ""
    workflow_id: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    untrue: str = ""
    ended: bool = False


@dataclass
class Drawn:
    """A call as it is drawn, before it is known what it is about.

    Attributes:
        place: Which of the client's things it is about, as a share of all that there are, newest last.
        again: Whether the same call is made twice, with the same idempotency key.
        gives_up: Whether it is cancelled where it goes on.
    """

    tool: str
    place: float
    kept: bool
    again: bool
    gives_up: bool
    number: int
    words: tuple[str, str]


def drawn(seed: int, client: str) -> "random.Random":
    """The chances of a client."""
    return random.Random(f"{seed} {client}")


def draw(chances: random.Random) -> Drawn:
    """The next call of a client."""
    [tool] = chances.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
    return Drawn(
        tool=tool,
        place=chances.random(),
        kept=chances.random() < 0.3,
        again=chances.random() < 0.5,
        gives_up=chances.random() < 0.2,
        number=chances.randrange(1_000),
        words=(chances.choice(_OBJECTS), chances.choice(_PLACES)),
    )


class Ledger:
    """Every call that was made, and every thing."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.things: list[Thing] = []

    def forgotten(self) -> set[tuple[str, str]]:
        """Users and conversations of which something was to be forgotten."""
        return {(call.thing.user, call.thing.name) for call in self.calls if call.tool == "forget" and call.thing}


class Caller:
    """One client: it makes one call after the other, and connects anew where it lost its server.

    Args:
        role: The server that it has for itself over stdio, or `http` for the one that it shares.
        mode: As `mcp.Client` has it.
    """

    def __init__(self, stage: Stage, ledger: Ledger, name: str, role: str, mode: str, seed: int) -> None:
        self.name = name
        self._stage = stage
        self._ledger = ledger
        self._role = role
        self._mode = mode
        self._chances = drawn(seed, name)
        self._things: list[Thing] = []
        self._made = 0
        self._tag = f"{seed % 1000}{name.replace('-', '')}"

    async def run(self, over: asyncio.Event, most: int | None) -> None:
        """Make calls until told that it is over, `most` at most."""
        while not over.is_set() and (most is None or self._made < most):
            try:
                async with connected(self._stage, self._role, self._mode) as client:
                    while not over.is_set() and (most is None or self._made < most):
                        self._made += 1
                        if not await self._make(client, draw(self._chances)):
                            break
            except Exception:
                # The server was killed while it started, or can't start now.
                await asyncio.sleep(0.2)

    async def _make(self, client: Client, plan: Drawn) -> bool:
        """Make a call, if there is something that it can be about; whether the server is still there."""
        call = self._prepare(plan)
        if call is None:
            return True
        self._ledger.calls.append(call)
        if call.changes and call.thing is not None:
            call.thing.calls.append(call)
        lives = await self._ask(client, call)
        if call.outcome == "done":
            self._judge(call)
        if lives and call.outcome == "goes on" and call.changes and call.workflow_id:
            follow = "cancel_task" if plan.gives_up else "task_status"
            call.ended = plan.gives_up
            asked = Call(len(self._ledger.calls), self.name, follow, {"task_id": call.workflow_id}, None)
            self._ledger.calls.append(asked)
            lives = await self._ask(client, asked)
        if call.key is not None and plan.again and not call.ended:
            lives = await self._repeat(client if lives else None, call)
        return lives

    async def _repeat(self, client: Client | None, first: Call) -> bool:
        """Make a call again with the same key, over another connection where the first is lost."""
        again = Call(len(self._ledger.calls), self.name, first.tool, first.arguments, first.thing, key=first.key)
        again.changes, again.puts = first.changes, first.puts
        self._ledger.calls.append(again)
        if client is None:
            with contextlib.suppress(Exception):
                async with connected(self._stage, self._role, self._mode) as another:
                    await self._ask(another, again)
        elif not await self._ask(client, again):
            client = None
        ids = {one.workflow_id for one in (first, again) if one.workflow_id}
        if len(ids) > 1:
            again.untrue = f"two workflows for one idempotency key: {sorted(ids)}"
        elif first.outcome == again.outcome == "done" and first.result != again.result:
            again.untrue = "two results for one idempotency key"
        if again.outcome == "done" and first.outcome != "done" and first.thing is not None:
            # It is certain now.
            first.thing.calls[first.thing.calls.index(first)] = again
        return client is not None

    def _prepare(self, plan: Drawn) -> Call | None:
        """The call that was drawn; None where there is nothing yet that it could be about."""
        user = f"user-{self.name}"
        call = Call(len(self._ledger.calls), self.name, plan.tool, {"user_id": user}, None)
        if plan.kept:
            call.key = f"{self._tag}-{self._made}"
        mark = f"zq{self._tag}n{self._made:05}"
        what, where = plan.words
        match plan.tool:
            case "store_memory":
                everybody = plan.number % 5 == 0
                conversation = "meeting" if everybody else f"conversation-{plan.number % 7}"
                owner = SHARED if everybody else user
                thing = self._new("message", owner, conversation, mark)
                text = f"Please remember that my {what} {mark} is kept in the {where}, on shelf {plan.number}."
                human = plan.number % 4 > 0
                call.arguments = {
                    "user_id": owner,
                    "conversation_id": conversation,
                    "text": text,
                    "message_type": "human" if human else "ai",
                }
                return self._changing(call, thing, text)
            case "semantic_cache_response":
                new = plan.number % 3 > 0
                old = self._pick("answer", plan.place)
                thing = self._new("answer", user, f"Who has the {what} {mark}?", mark) if new or old is None else old
                answer = f"The keeper of the {where} has it; take {mark}."
                call.arguments |= {"query": thing.name, "response": answer}
                if plan.number % 4 == 0:
                    call.arguments["ttl_seconds"] = 3600
                return self._changing(call, thing, answer)
            case "ingest_documents":
                new = plan.number % 3 > 0
                old = self._pick("document", plan.place)
                return self._document(call, plan, mark, None if new else old)
            case "invalidate_cache":
                found = self._pick("answer", plan.place)
                if found is None:
                    return None
                call.arguments |= {"query": found.name}
                return self._changing(call, found, None)
            case "forget":
                found = self._pick("message", plan.place)
                if found is None or found.user == SHARED or found.value is None or not found.certain:
                    return None
                call.arguments |= {"ids": [found.calls[-1].result["message_id"]]}
                return self._changing(call, found, None)
            case "list_memories":
                return call
        kinds: dict[str, Kind] = {
            "retrieve_memory": "message",
            "check_semantic_cache": "answer",
            "hybrid_search": "document",
        }
        call.thing, call.key = self._pick(kinds[plan.tool], plan.place), None
        if call.thing is None:
            return None
        _, call.arguments = asking(call.thing)
        return call

    def _document(self, call: Call, plan: Drawn, mark: str, old: Thing | None) -> Call | None:
        what, where = plan.words
        thing = old
        file = self._role != "http" and plan.number % 2 == 0
        if thing is None:
            name = str(self._stage.documents / f"{mark}.md") if file else f"note {mark}"
            thing = self._new("document", f"user-{self.name}", name, mark)
        # Each paragraph is about as long as a chunk may be.
        paragraphs = [
            f"The {what} {thing.mark} came to the {where} as piece {plan.number} of lot {n}, and its case bears "
            f"{mark}, as the list of the year {1800 + n} says which the keeper of the {where} wrote."
            for n in range(1 + plan.number % 5)
        ]
        text = "\n\n".join([f"# Catalogue {thing.mark}", *paragraphs])
        if thing.name.startswith("note "):
            call.arguments |= {"text": text, "name": thing.name}
        else:
            call.arguments |= {"sources": [thing.name]}
        prepared = self._changing(call, thing, text)
        if prepared is not None and not thing.name.startswith("note "):
            with open(thing.name, "w") as written:
                written.write(text)
        return prepared

    def _new(self, kind: Kind, user: str, name: str, mark: str) -> Thing:
        thing = Thing(kind, user, name, mark)
        self._things.append(thing)
        self._ledger.things.append(thing)
        return thing

    def _pick(self, kind: Kind, place: float) -> Thing | None:
        """One of the client's things, newer ones more often."""
        things = [one for one in self._things if one.kind == kind]
        return things[int(place**0.5 * len(things))] if things else None

    @staticmethod
    def _changing(call: Call, thing: Thing, puts: str | None) -> Call | None:
        """A call that changes a thing; None where it isn't certain what the thing is."""
        if not thing.certain:
            return None
        call.thing, call.changes, call.puts = thing, True, puts
        return call

    async def _ask(self, client: Client, call: Call) -> bool:
        """Make a call and note what is answered; whether there was an answer."""
        meta: Any = {IDEMPOTENCY_KEY: call.key} if call.key is not None else None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                result = await client.call_tool(call.tool, call.arguments, meta=meta)
        except Exception as error:
            call.said = f"{type(error).__name__}: {error}"
            return False
        note(call, result)
        return True

    def _judge(self, call: Call) -> None:
        """Whether a result is true by what is certain."""
        thing, result = call.thing, call.result
        if call.tool == "ingest_documents":
            [source] = result["sources"]
            if source["status"] not in ("stored", "unchanged"):
                call.untrue = f"the source is {source['status']}: {source['reason']}"
        if call.tool == "forget" and result["unknown_ids"]:
            call.untrue = "a message that was stored isn't known"
        if thing is not None and not call.changes and thing.calls and thing.certain:
            call.untrue = wrong(call.tool, thing, thing.value, result)


def wrong(tool: str, thing: Thing, value: str | None, result: dict[str, Any]) -> str:
    """What is wrong with a result about a thing that holds `value`; nothing where it is right."""
    match tool:
        case "check_semantic_cache":
            if (result["response"] if result["hit"] else None) != value:
                return f"the answer is {value!r}, and this was answered: {result}"
        case "retrieve_memory":
            texts = [one["text"] for one in result["related_conversation"] if thing.mark in one["text"]]
            if texts != ([] if value is None else [value]):
                return f"what was said is {value!r}, and this was recalled: {texts}"
        case "hybrid_search":
            texts = [one["text"] for one in result["results"] if thing.mark in one["text"]]
            if not texts or any(one not in str(value) for one in texts):
                return f"the document is {value!r}, and this was found: {texts}"
    return ""


def asking(thing: Thing) -> tuple[str, dict[str, Any]]:
    """The tool that finds a thing, and its arguments."""
    match thing.kind:
        case "message":
            return "retrieve_memory", {"user_id": thing.user, "text": f"Where is {thing.mark}?"}
        case "answer":
            return "check_semantic_cache", {"user_id": thing.user, "query": thing.name}
        case "document":
            return "hybrid_search", {"user_id": thing.user, "query": thing.mark}


def note(call: Call, result: CallToolResult) -> None:
    """Note what a call was answered."""
    call.said = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    call.workflow_id = (result.meta or {}).get(WORKFLOW_ID)
    content = result.structured_content or {}
    if result.is_error:
        call.outcome = "failed"
    elif content.get("status") == "working" and call.tool not in ("task_status", "cancel_task"):
        call.outcome = "goes on"
    else:
        call.outcome, call.result = "done", content


@asynccontextmanager
async def connected(stage: Stage, role: str, mode: str) -> AsyncIterator[Client]:
    """A client of the server of a role."""
    async with contextlib.AsyncExitStack() as stack:
        if role == "http":
            http = await stack.enter_async_context(httpx2.AsyncClient(timeout=60, trust_env=False))
            transport: Any = streamable_http_client(address(stage), http_client=http)
        else:
            transport = stdio_client(stage.stdio(role), errlog=stack.enter_context(stage.log(role)))  # type: ignore[arg-type]
        async with asyncio.timeout(CONNECT_SECONDS) as starting:
            client = await stack.enter_async_context(Client(transport, mode=mode))
            starting.reschedule(None)
        yield client
