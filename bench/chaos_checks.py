"""What `bench.chaos` checks at the end: every call's answer, its workflow and the store have to agree."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pymongo
import sqlite_vec
from mcp import Client
from temporalio.client import Client as TemporalClient

from activities.chunking import split
from activities.formats import parse
from activities.memory import CONTEXT_CHARACTERS
from activities.store.atlas_indexes import all_names
from bench.chaos_calls import Call, Ledger, Thing, asking, note, wrong
from bench.chaos_stage import Stage
from mcp_server.local.stack import is_running

SETTLE_SECONDS = 150.0
"""How long what is under way may take once all is mended: a step that failed often is tried again after 20 s."""
LOOKED_FOR = 60
"""How many things are looked for by the tools at the end."""
ANSWERED_SECONDS = 60.0
GONE_SECONDS = 20.0


@dataclass
class Findings:
    """What is wrong, a sentence each."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    disagreeing: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        names = {
            "lost": self.lost,
            "doubled": self.doubled,
            "untrue": self.untrue,
            "stuck": self.stuck,
            "indexes and caches that disagree": self.disagreeing,
            "left over": self.left,
        }
        return {name: len(found) for name, found in names.items()}


# Workflows


@dataclass(frozen=True)
class Workflow:
    """A run of one.

    Attributes:
        argument: As JSON.
        unstored: Why an ingestion that is complete hasn't stored its source.
    """

    workflow_id: str
    status: str
    argument: str
    unstored: str = ""


async def settled(temporal: TemporalClient, findings: Findings, tell: Callable[[str], None]) -> float:
    """Wait until no workflow runs any more; note those that do after SETTLE_SECONDS. Answers how long it took."""
    begun = time.monotonic()
    idle, told = 0, ""
    while idle < 3:
        running = [one async for one in temporal.list_workflows('ExecutionStatus = "Running"')]
        idle = 0 if running else idle + 1
        state = f"{len(running)} workflows still run: {', '.join(sorted({one.workflow_type for one in running}))}"
        if running and state != told:
            tell(told := state)
        if time.monotonic() - begun > SETTLE_SECONDS:
            findings.stuck += [f"{one.workflow_type} {one.id}: {await _pending(temporal, one.id)}" for one in running]
            break
        await asyncio.sleep(0.4)
    return time.monotonic() - begun


async def _pending(temporal: TemporalClient, workflow_id: str) -> str:
    """What a workflow waits for."""
    described = await temporal.get_workflow_handle(workflow_id).describe()
    steps = [
        f"{step.activity_type.name}, attempt {step.attempt}: {step.last_failure.message}"
        for step in described.raw_description.pending_activities
    ]
    return "; ".join(steps) or "a worker"


async def workflows_of(temporal: TemporalClient) -> list[Workflow]:
    """Every run of every workflow."""
    slots = asyncio.Semaphore(16)

    async def read(one: Any) -> Workflow:
        async with slots:
            events = temporal.get_workflow_handle(one.id, run_id=one.run_id).fetch_history_events(page_size=1)
            async for event in events:
                payloads = event.workflow_execution_started_event_attributes.input.payloads
                argument = payloads[0].data.decode() if payloads else ""
                unstored = ""
                if one.workflow_type == "DataIngestionWorkflow" and one.status.name == "COMPLETED":
                    [source] = (await temporal.get_workflow_handle(one.id, run_id=one.run_id).result())["sources"]
                    if source["status"] not in ("stored", "unchanged"):
                        unstored = f"{source['status']}: {source['reason']}"
                return Workflow(one.id, one.status.name, argument, unstored)
        raise RuntimeError(f"{one.id} has no history")

    return await asyncio.gather(*[read(one) async for one in temporal.list_workflows()])


class Matched:
    """The workflow of each call that changes something."""

    def __init__(self, calls: list[Call], workflows: list[Workflow]) -> None:
        self._by_id = {one.workflow_id: one for one in workflows}
        keyed = {(one.client, one.key): one.workflow_id for one in calls if one.key and one.workflow_id}
        self._claimed = {one.workflow_id for one in calls if one.workflow_id}
        self._all = workflows
        self._of: dict[int, Workflow | None] = {}
        self.several: list[str] = []
        for call in calls:
            if call.changes:
                name = call.workflow_id or (keyed.get((call.client, call.key)) if call.key else None)
                self._of[call.number] = self._by_id.get(name) if name else self._unclaimed(call)

    def _unclaimed(self, call: Call) -> Workflow | None:
        """The workflow of a call that wasn't answered with its id, by what it was asked for."""
        token = _token(call)
        found = [
            one
            for one in self._all
            if one.workflow_id.startswith(f"{call.tool}-")
            and token in one.argument
            and one.workflow_id not in self._claimed
        ]
        if len(found) > 1 and call.key is None:
            self.several.append(f"{shown(call)} began {len(found)} workflows")
        return found[0] if found else None

    def __getitem__(self, call: Call) -> Workflow | None:
        return self._of[call.number]


def _token(call: Call) -> str:
    """What is in the argument of a call's workflow, and in that of no other call without an answer."""
    arguments = call.arguments
    match call.tool:
        case "store_memory":
            return str(arguments["text"])
        case "semantic_cache_response":
            return str(arguments["response"])
        case "forget":
            return str(arguments["ids"][0])
        case "invalidate_cache":
            return str(arguments["query"])
    return str(arguments["name"] if "name" in arguments else arguments["sources"][0])


def shown(call: Call) -> str:
    """A call as a finding names it."""
    return f"call {call.number} ({call.client}, {call.tool}, {call.outcome}, {call.workflow_id or 'no workflow id'})"


# The store


@dataclass
class Records:
    """What the store holds.

    Attributes:
        messages: Id, user, conversation, text, and whether the conversation's summary covers it.
        sources: For each message's id, the memories that name it.
        chunks: Texts in order by user and source.
        listed: How many chunks each source says that it has.
        answers: By user and question.
        summaries: How many messages each says that it covers, by user and conversation.
        alone: Texts of messages that aren't found together with the one before them.
        disagreeing: Where indexes or records don't fit each other.
        staged: Vectors of chunks that aren't stored.
        contents: Names of contents that nobody has dropped.
    """

    messages: list[tuple[str, str, str, str, bool]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    chunks: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    listed: dict[tuple[str, str], int] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    summaries: dict[tuple[str, str], int] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    disagreeing: list[str] = field(default_factory=list)
    staged: int = 0
    contents: list[str] = field(default_factory=list)

    def take_contexts(self, contexts: Mapping[str, str], previous: Mapping[str, str | None]) -> None:
        """Take in what each message is found by beside its own text, and the message before it, by message ids."""
        places = {name: (user, conversation, text) for name, user, conversation, text, _ in self.messages}
        if contexts.keys() != places.keys():
            self.disagreeing.append("not every message has its context, or one of none")
        for name, (user, conversation, text) in places.items():
            before = previous[name]
            wanted = text
            if before is None:
                self.alone.add(text)
            elif before in places and places[before][:2] == (user, conversation):
                wanted = f"{places[before][2][-CONTEXT_CHARACTERS:]}\n{text}"
            else:
                self.disagreeing.append(f"message {name} comes after {before}, which isn't in its conversation")
                continue
            if contexts.get(name, wanted) != wanted:
                self.disagreeing.append(f"message {name} is found by {contexts[name]!r}, and it should be {wanted!r}")


def _embedded_records(home: Path) -> Records:
    records = Records()
    db = apsw.Connection(str(home / "store.db"))
    try:
        db.enable_load_extension(True)
        db.load_extension(sqlite_vec.loadable_path())

        def rows(sql: str) -> list[Any]:
            return db.execute(sql).fetchall()

        records.messages = rows(
            "select c.message_id, c.user_id, c.conversation_id, c.text, c.summary_id is not null and c.summary_id is "
            "s.summary_id from conversations c left join summaries s using (user_id, conversation_id)"
        )
        records.sources = Counter(one for (one,) in rows("select message_id from memory_sources"))
        for user, source, text in rows("select user_id, source, text from documents order by position"):
            records.chunks.setdefault((user, source), []).append(text)
        records.listed = {
            (user, source): count for user, source, count in rows("select user_id, source, chunks from sources")
        }
        for user, query, response in rows("select user_id, query, response from cache"):
            records.answers.setdefault((user, query), []).append(response)
        records.summaries = {
            (user, conversation): count
            for user, conversation, count in rows("select user_id, conversation_id, messages from summaries")
        }
        [(records.staged,)] = rows("select count(*) from staged_vectors")
        for table in ("documents", "conversations", "contexts", "memory_nodes", "cache"):
            ids = rows(f"select id from {table} order by id")
            indexes = [("vectors", f"select id from {table}_vectors order by id")]
            if table == "cache":
                indexes = [("vectors", "select rowid from cache_vectors_rowids order by rowid")]
            else:
                counted = rows(f"select user_id, count(*) from {table} group by user_id order by user_id")
                kept = f"select user_id, sum(records) from shares where name = '{table}' and records > 0 "
                if rows(f"{kept} group by user_id order by user_id") != counted:
                    records.disagreeing.append(f"the shares of {table} don't count its records")
            if table in ("documents", "conversations", "contexts"):
                indexes.append(("keywords", f"select id from {table}_text_docsize order by id"))
                db.execute(f"insert into {table}_text({table}_text) values('integrity-check')")
            for name, sql in indexes:
                if rows(sql) != ids:
                    records.disagreeing.append(f"the {name} of {table} aren't those of its {len(ids)} records")
        if rows("select id, message_id from conversations") != rows("select id, message_id from contexts"):
            records.disagreeing.append("the contexts aren't under the ids of their messages")
        contexts = dict(rows("select message_id, text from contexts"))
        records.take_contexts(contexts, dict(rows("select message_id, previous from conversations")))
        for check in ("integrity_check", "foreign_key_check"):
            if (said := rows(f"pragma {check}")) not in ([("ok",)], []):
                records.disagreeing.append(f"{check}: {said}")
    finally:
        db.close()
    folder = home / "contents"
    records.contents = sorted(one.name for one in folder.iterdir()) if folder.exists() else []
    return records


def _atlas_records(uri: str, database: str) -> Records:
    records = Records()
    names = all_names({})
    with pymongo.MongoClient[dict[str, Any]](uri) as client:

        def found(name: str) -> list[dict[str, Any]]:
            return list(client[database][names[name]].find())

        summaries = {(one["user_id"], one["conversation_id"]): one for one in found("summaries")}
        messages = found("conversations")
        for one in messages:
            summary = summaries.get((one["user_id"], one["conversation_id"]))
            covered = summary is not None and one.get("summary_id") == summary["summary_id"]
            records.messages.append((one["_id"], one["user_id"], one["conversation_id"], one["text"], covered))
        records.summaries = {key: one["messages"] for key, one in summaries.items()}
        for one in found("memory_nodes"):
            records.sources.update(source["message_id"] for source in one.get("sources", []))
        revisions = {(one["user_id"], one["source"]): one["revision"] for one in found("sources")}
        records.listed = {(one["user_id"], one["source"]): one["chunks"] for one in found("sources")}
        for one in sorted(found("documents"), key=lambda chunk: chunk["position"]):
            key = (one["user_id"], one["source"])
            records.chunks.setdefault(key, []).append(one["text"])
            if one["revision"] != revisions.get(key):
                records.disagreeing.append(f"a chunk of {key} isn't of its newest revision")
        for one in found("cache"):
            records.answers.setdefault((one["user_id"], one["query"]), []).append(one["response"])
        contexts = {one["_id"]: one["text"] for one in found("contexts")}
        records.take_contexts(contexts, {one["_id"]: one["previous"] for one in messages})
        records.staged = len(found("staged"))
        records.contents = [str(one["filename"]) for one in found("content_files")]
        if {one["files_id"] for one in found("content_chunks")} - {one["_id"] for one in found("content_files")}:
            records.contents.append("chunks of none")
    return records


def records_of(stage: Stage) -> Records:
    """What the store holds, read past the product."""
    if stage.mongodb is None:
        return _embedded_records(stage.home)
    return _atlas_records(stage.mongodb, stage.settings["DB_NAME"])


# What has to agree


def _outcomes(thing: Thing, matched: Matched) -> set[str | None]:
    """What a thing may hold: the changes that were made to it, in their order. None stands for nothing."""
    states: set[str | None] = {None}
    for call in thing.calls:
        workflow = matched[call]
        if call.outcome == "done" or (workflow is not None and workflow.status == "COMPLETED"):
            states = {call.puts}
        elif workflow is not None:
            # Cancelled in the middle, what was done until then may stay done.
            states = states | {call.puts}
    return states


def compare(
    ledger: Ledger, workflows: list[Workflow], records: Records, findings: Findings
) -> dict[int, set[str | None]]:
    """Compare every call with its workflow and with the store; answer what each thing may hold, by its place."""
    matched = Matched(ledger.calls, workflows)
    findings.doubled += matched.several
    repeated = Counter((one.client, one.key) for one in ledger.calls if one.key)
    for call in ledger.calls:
        if call.untrue:
            findings.untrue.append(f"{shown(call)}: {call.untrue}")
        if call.changes:
            alone = call.key is None or repeated[call.client, call.key] == 1
            workflow = matched[call]
            if said := _untruth(call, workflow, alone):
                findings.untrue.append(f"{shown(call)}: {said}: {call.said}")
            if workflow is not None and workflow.unstored:
                findings.lost.append(f"{shown(call)}: {workflow.workflow_id} ended with its source {workflow.unstored}")
    possible = {place: _outcomes(thing, matched) for place, thing in enumerate(ledger.things)}
    for place, thing in enumerate(ledger.things):
        _compare_thing(thing, possible[place], records, findings)
    _compare_memories(ledger, records, findings)
    _compare_contexts(ledger, records, findings)
    findings.disagreeing += records.disagreeing
    return possible


def _untruth(call: Call, workflow: Workflow | None, alone: bool) -> str:
    """What is untrue about an answer, beside what it says was done."""
    status = workflow.status if workflow is not None else "not there"
    if call.outcome == "done" and workflow is not None and status != "COMPLETED":
        return f"it was done, and its workflow is {status}"
    if call.outcome == "goes on" and status != "COMPLETED" and not (call.ended and status == "CANCELED"):
        return f"it was to go on, and its workflow is {status}"
    if call.outcome == "failed" and "isn't known" not in call.said and alone:
        if call.workflow_id is None and workflow is not None:
            return f"nothing was to be started, and its workflow is {status}"
        if status == "COMPLETED":
            return "it was to have failed, and its workflow is COMPLETED"
    return ""


def _compare_thing(thing: Thing, possible: set[str | None], records: Records, findings: Findings) -> None:
    """Compare what the store holds of a thing with what it may hold."""
    calls = ", ".join(shown(call) for call in thing.calls)
    if thing.kind == "message":
        held: list[str | None] = [
            text for _, user, _, text, _ in records.messages if thing.mark in text and user == thing.user
        ]
        ids = {name for name, _, _, text, _ in records.messages if thing.mark in text}
        for call in thing.calls:
            if call.outcome == "done" and call.tool == "store_memory" and ids and call.result["message_id"] not in ids:
                findings.untrue.append(f"{calls}: the message is stored under another id than was answered")
    elif thing.kind == "answer":
        held = list(records.answers.get((thing.user, thing.name), []))
    else:
        chunks = records.chunks.get((thing.user, thing.name), [])
        held = [_document_of(chunks, possible)] if chunks else []
        if len(chunks) != records.listed.get((thing.user, thing.name), 0):
            findings.disagreeing.append(f"{calls}: {len(chunks)} chunks, and the list of sources says otherwise")
    if len(held) > 1:
        findings.doubled.append(f"{calls}: it is stored {len(held)} times")
    elif not held and None not in possible:
        findings.lost.append(f"{calls}: nothing is stored, and it should be {possible}")
    elif held and held[0] not in possible:
        where = findings.lost if any(one is not None for one in possible) else findings.untrue
        where.append(f"{calls}: {held[0]!r} is stored, and it should be {possible}")


def _document_of(chunks: list[str], possible: set[str | None]) -> str:
    """The text of which these are exactly the chunks, or all of them where they are those of none."""
    for text in possible:
        if text is not None and [piece.text for piece in split(parse(text.encode(), ".md"), 40, 0)] == chunks:
            return text
    return "\n".join(chunks)


def _compare_memories(ledger: Ledger, records: Records, findings: Findings) -> None:
    """Each message that may be worth a memory is named by one, and covered by its conversation's summary."""
    forming = {
        call.arguments["text"]
        for call in ledger.calls
        if call.tool == "store_memory" and call.arguments["message_type"] == "human"
    }
    known = {name for name, *_ in records.messages}
    covered: Counter[tuple[str, str]] = Counter()
    for name, user, conversation, text, is_covered in records.messages:
        covered[user, conversation] += is_covered
        wanted = int(text in forming)
        if (count := records.sources[name]) != wanted:
            (findings.lost if count < wanted else findings.doubled).append(
                f"{count} memories were formed of message {name}, and it should be {wanted}"
            )
    for name in records.sources.keys() - known:
        findings.untrue.append(f"a memory says that it is formed of {name}, which isn't there")
    for key, count in records.summaries.items():
        if covered[key] != count:
            findings.disagreeing.append(f"the summary of {key} says it covers {count} messages: {covered[key]} say so")
    forgotten = ledger.forgotten()
    for _, user, conversation, text, is_covered in records.messages:
        # A summary goes with any of its messages, and is made anew when the next one comes.
        if not is_covered and (user, conversation) not in forgotten:
            findings.lost.append(f"no summary of {conversation} of {user} covers {text!r}")


def _compare_contexts(ledger: Ledger, records: Records, findings: Findings) -> None:
    """Each message that came after another is found together with it, but where something was forgotten meanwhile."""
    forgotten = ledger.forgotten()
    begun: set[str] = set()
    followed: set[tuple[str, str, str]] = set()
    for call in ledger.calls:
        if call.tool != "store_memory" or call.thing is None:
            continue
        text, place = call.arguments["text"], (call.thing.user, call.thing.name)
        # A call that is made again may be of a message that was there before those that were answered since.
        if text not in begun and text in records.alone and (call.client, *place) in followed and place not in forgotten:
            findings.lost.append(f"{shown(call)}: {text!r} isn't found together with the message before it")
        begun.add(text)
        if call.outcome == "done":
            followed.add((call.client, *place))


async def search(
    client: Client, ledger: Ledger, possible: dict[int, set[str | None]], seed: int, findings: Findings
) -> int:
    """Look for some things by the tools; answer for how many."""
    sure = [place for place, states in possible.items() if len(states) == 1 and ledger.things[place].calls]
    chosen = random.Random(seed).sample(sure, min(LOOKED_FOR, len(sure)))
    for place in chosen:
        thing = ledger.things[place]
        [value] = possible[place]
        if thing.kind == "document" and value is None:
            continue
        tool, arguments = asking(thing)
        call = Call(-1, "the checks", tool, arguments, thing)
        deadline = time.monotonic() + ANSWERED_SECONDS
        while call.outcome != "done" and time.monotonic() < deadline:
            # On a busy machine an answer may take longer than a call.
            note(call, await client.call_tool(tool, arguments))
        said = wrong(tool, thing, value, call.result) if call.outcome == "done" else call.said
        if said:
            findings.disagreeing.append(f"{tool} for {thing.mark}: {said}")
    return len(chosen)


# What may not be left


async def compare_leftovers(stage: Stage, findings: Findings) -> None:
    """Look for processes, locks and temporary files, once all servers have ended and before the store is opened."""
    deadline = time.monotonic() + GONE_SECONDS
    while (living := await asyncio.to_thread(stage.living)) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    for process in living:
        with contextlib.suppress(Exception):
            findings.left.append(f"process {process.pid}: {' '.join(process.cmdline())}")
    if is_running(stage.home):
        findings.left.append("stack.lock is held")
    findings.left += _files(stage.home)


def compare_contents(records: Records, ledger: Ledger, workflows: list[Workflow], findings: Findings) -> int:
    """Look for contents and vectors that nobody uses; answer how many are kept for calls that were never begun.

    Whether a killed server had begun the work, nobody can tell but Temporal: what it held goes after CONTENTS_KEPT.
    """
    if records.staged:
        findings.left.append(f"{records.staged} staged vectors")
    unbegun = sum(
        1
        for call in ledger.calls
        if call.tool == "ingest_documents" and call.outcome != "done" and "text" in call.arguments
    )
    used = {one.workflow_id for one in workflows}
    arguments = [one.argument for one in workflows]
    kept = 0
    for name in records.contents:
        mine = any(name in argument for argument in arguments) or any(name.startswith(one) for one in used)
        if mine or kept >= unbegun:
            findings.left.append(f"content {name}")
        else:
            kept += 1
    return kept


def _files(home: Path) -> Iterator[str]:
    """Files that only a process at work may have."""
    for name in ("stack.json.new", "store.db-wal", "store.db-shm", "filler"):
        if (home / name).exists():
            yield f"file {name}"
    for one in home.rglob(".*"):
        yield f"file {one.relative_to(home)}"
