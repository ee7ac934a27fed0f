"""How much of what answers a question `retrieve_memory` recalls, asked about the conversations of LoCoMo.

LoCoMo (Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", ACL 2024) is licensed for
non-commercial use and isn't part of this project: `--data` is a folder with its conversations, one JSON file each, with
the turns in lists `session_N`, their time in `session_N_date_time`, and the questions in `qa`.

Every conversation is a user of its own on an embedded stack in a temporary folder. A client stores each turn by
`store_memory`, as "speaker: text", dated by its session, and asks each question of the categories 1 to 4 once by
`retrieve_memory` with a limit of 20. Recall at k is the share of a question's evidence turns among the first k messages
of the answer, averaged over the questions.

The baselines are the same turns as documents of the same store, each one chunk, asked in the same run: by keyword
(BM25 with stemming) and by vector alone, which are `hybrid_search` at weights 0 and 1; their even fusion by scores,
each leg's best 100 min-max scaled; and the fusion of the same by ranks, as `hybrid_search` makes it. The time of an
answer is compared with that of a `hybrid_search` at weight 0.5, asked right after it for every fourth question.

Usage: python -m bench.locomo --data FOLDER
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from activities.memory import memory_workflow_id
from activities.store.fusion import fuse
from activities.store.relevance import scaled
from mcp_server.demo import embedded_environment
from mcp_server.local.stack import leased
from mcp_server.runtime import connect_embedded
from mcp_server.settings import Settings

CATEGORIES = (1, 2, 3, 4)
"""Multi-hop, temporal, open-domain and single-hop questions; those of category 5 have no answer."""
DEPTHS = (5, 10, 20)
LEG = 100
"""How many results of each leg are fused by their scores; the most that the tool returns."""
CALLS_AT_ONCE = 4
COLLECTION = "turns"


class Turn(NamedTuple):
    name: str
    session: str
    speaker: str
    text: str
    time: datetime


class Question(NamedTuple):
    user: str
    text: str
    evidence: frozenset[str]


class Conversation(NamedTuple):
    user: str
    turns: list[Turn]
    questions: list[Question]


def read_conversation(file: Path) -> Conversation:
    """A conversation's turns in order, and the questions whose evidence names turns of it."""
    content = json.loads(file.read_text(encoding="utf-8"))
    turns: list[Turn] = []
    sessions = [key for key in content if re.fullmatch(r"session_\d+", key)]
    for session in sorted(sessions, key=lambda key: int(key.removeprefix("session_"))):
        began = datetime.strptime(content[f"{session}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
        for place, turn in enumerate(content[session]):
            caption = f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            text = f"{turn['speaker']}: {turn['text']}{caption}"
            turns.append(Turn(turn["dia_id"], session, turn["speaker"], text, began + timedelta(seconds=place)))
    names = frozenset(turn.name for turn in turns)
    questions = [
        Question(file.stem, one["question"], evidence)
        for one in content["qa"]
        if one["category"] in CATEGORIES
        and (evidence := names.intersection(re.findall(r"D\d+:\d+", " ".join(one["evidence"]))))
    ]
    return Conversation(file.stem, turns, questions)


def recall(ranked: Sequence[set[str]], evidence: frozenset[str], depth: int) -> float:
    """The share of the evidence among the first `depth` results, each of which may bring several turns."""
    return len(evidence.intersection(set[str]().union(*ranked[:depth]))) / len(evidence)


async def call(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments, read_timeout_seconds=120)
    if answer.is_error or answer.structured_content is None:
        raise RuntimeError(f"{tool} failed: {answer.content}")
    content: dict[str, Any] = answer.structured_content
    return content


async def store(client: Client, conversation: Conversation) -> dict[str, str]:
    """Store a conversation's turns by the tool; answer their names by message id."""
    places = asyncio.Semaphore(CALLS_AT_ONCE)
    users_speaker = conversation.turns[0].speaker
    names: dict[str, str] = {}

    async def session(turns: list[Turn]) -> None:
        async with places:
            for turn in turns:
                arguments = {
                    "user_id": conversation.user,
                    "conversation_id": turn.session,
                    "text": turn.text,
                    "message_type": "human" if turn.speaker == users_speaker else "ai",
                    "timestamp": turn.time.isoformat(),
                }
                names[(await call(client, "store_memory", arguments))["message_id"]] = turn.name

    sessions: dict[str, list[Turn]] = {}
    for turn in conversation.turns:
        sessions.setdefault(turn.session, []).append(turn)
    await asyncio.gather(*map(session, sessions.values()))
    return names


def fused(keyword: list[dict[str, Any]], vector: list[dict[str, Any]]) -> list[set[str]]:
    """The even fusion of two legs by their scores, min-max scaled."""
    legs = [
        scaled({name_of(hit): hit["text_score"] for hit in keyword}),
        scaled({name_of(hit): hit["vector_score"] for hit in vector}),
    ]
    scores = {name: sum(leg.get(name, 0.0) for leg in legs) for leg in legs for name in leg}
    return [{name} for name in sorted(scores, key=lambda name: -scores[name])]


def name_of(hit: dict[str, Any]) -> str:
    return Path(hit["metadata"]["source"]).stem.replace("_", ":")


class Measured(NamedTuple):
    """Results of each way of asking one question, best first; and how long two of them took, in seconds, if timed."""

    ranked: dict[str, list[set[str]]]
    times: tuple[float, float] | None


async def ask(
    client: Client, question: Question, names: dict[str, str], at: dict[tuple[str, str], str], timed: bool
) -> Measured:
    """Ask one question in every way.

    Args:
        timed: Whether to compare the times of two of them.
        names: Names of turns by message id.
        at: Names of turns by their time, as the tools write it, and text.
    """
    document = {"user_id": question.user, "collection": COLLECTION, "query": question.text}
    began = time.perf_counter()
    answer = await call(client, "retrieve_memory", {"user_id": question.user, "text": question.text, "limit": 20})
    answered = time.perf_counter()
    times = None
    if timed:
        await call(client, "hybrid_search", {**document, "limit": 20, "weight": 0.5})
        times = (answered - began, time.perf_counter() - answered)
    legs = [{**document, "limit": LEG, "weight": weight} for weight in (0.0, 1.0)]
    keyword, vector = [
        found["results"] for found in await asyncio.gather(*(call(client, "hybrid_search", leg) for leg in legs))
    ]
    messages = answer["related_conversation"]
    own = [{names[one["message_id"]]} for one in messages]
    around = [
        {at[near["timestamp"], near["text"]] for near in (*one["before"], *one["after"])} | found
        for one, found in zip(messages, own, strict=True)
    ]
    ranked = {
        "keywords (BM25)": [{name_of(hit)} for hit in keyword],
        "vectors": [{name_of(hit)} for hit in vector],
        "even fusion by scores": fused(keyword, vector),
        "even fusion by ranks": [
            {name} for name, _ in fuse([(0.5, [name_of(hit) for hit in leg]) for leg in (vector, keyword)])
        ],
        "retrieve_memory": own,
        "  with surroundings": around,
    }
    return Measured(ranked, times)


async def measure(conversations: Sequence[Conversation]) -> list[tuple[Question, Measured]]:
    """Store everything, then ask each question in turn."""
    with tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True) as folder:
        home, corpus = Path(folder, "home"), Path(folder, "corpus")
        home.mkdir()
        environment = embedded_environment(home)
        line = [sys.executable, "-m", "mcp_server.cli"]
        server = StdioServerParameters(command=line[0], args=[*line[1:], "serve"], env=environment, cwd=home)
        results: list[tuple[Question, Measured]] = []
        async with leased(home, ["temporal", "models"]) as addresses, Client(stdio_client(server)) as client:
            assert addresses.temporal is not None
            temporal = await connect_embedded(addresses.temporal)
            queue = Settings(durable_context_home=home).temporal_task_queue
            names: dict[str, str] = {}
            for conversation in conversations:
                documents = corpus / conversation.user
                documents.mkdir(parents=True)
                for turn in conversation.turns:
                    (documents / f"{turn.name.replace(':', '_')}.txt").write_text(turn.text, encoding="utf-8")
                options = ["--user-id", conversation.user, "--collection", COLLECTION]
                ingest = await asyncio.create_subprocess_exec(
                    *line, "ingest", *options, str(documents), env=environment, cwd=home, stdout=asyncio.subprocess.PIPE
                )
                names |= await store(client, conversation)
                if await ingest.wait():
                    raise RuntimeError("the turns can't be ingested: see above")
                # By then each turn is found together with the one before it, too.
                await temporal.get_workflow_handle(memory_workflow_id(queue, conversation.user)).result()
                print(f"stored {conversation.user}: {len(conversation.turns)} turns", file=sys.stderr, flush=True)
            for conversation in conversations:
                at = {(f"{turn.time:%Y-%m-%dT%H:%M:%SZ}", turn.text): turn.name for turn in conversation.turns}
                for place, one in enumerate(conversation.questions):
                    results.append((one, await ask(client, one, names, at, timed=place % 4 == 0)))
                print(f"asked {conversation.user}: {len(conversation.questions)}", file=sys.stderr, flush=True)
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with LoCoMo's conversations")
    files = sorted(parser.parse_args().data.glob("*.json"))
    if not files:
        parser.error("--data: no *.json is there")
    results = asyncio.run(measure([read_conversation(file) for file in files]))
    print(f"Evidence recall over {len(results)} questions about {len(files)} conversations")
    print(f"{'':<24}" + "".join(f"{f'at {depth}':>8}" for depth in DEPTHS))
    for way in results[0][1].ranked:
        values = [
            statistics.fmean(recall(measured.ranked[way], question.evidence, depth) for question, measured in results)
            for depth in DEPTHS
        ]
        print(f"{way:<24}" + "".join(f"{value:>8.3f}" for value in values))
    times = [measured.times for _, measured in results if measured.times]
    ratio = statistics.median(answer for answer, _ in times) / statistics.median(fusion for _, fusion in times)
    print(f"\ntime of retrieve_memory to that of hybrid_search with the same limit, medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
