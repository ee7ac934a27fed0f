"""Each tool over a real client: what it answers, and what it says to bad input."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from temporalio.client import Client as TemporalClient

from activities.memory import memory_workflow_id
from mcp_server.local.stack import Addresses
from tests.conftest import content, error, serve, workflow_id
from workflows.history import steps_of

TOOLS = {
    "hybrid_search",
    "ingest_documents",
    "store_memory",
    "retrieve_memory",
    "task_status",
    "cancel_task",
    "list_memories",
    "pin_memory",
    "split_memory",
    "forget",
    "semantic_cache_response",
    "check_semantic_cache",
    "invalidate_cache",
    "search_web",
    "converse",
    "conversation_history",
    "end_conversation",
}


async def remember(client: Client, user: str, text: str, conversation: str = "c1", **arguments: Any) -> dict[str, Any]:
    arguments = {"message_type": "human"} | arguments
    result = await client.call_tool(
        "store_memory", {"conversation_id": conversation, "text": text, "user_id": user, **arguments}
    )
    return content(result)


async def settled(temporal: TemporalClient, user: str, task_queue: str = "durable-context") -> None:
    """Return once nothing is left to do for a user's memory."""
    await temporal.get_workflow_handle(memory_workflow_id(task_queue, user)).result()


async def test_tools_are_described_for_a_model(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    assert set(tools) == TOOLS
    destructive = {"forget", "invalidate_cache", "cancel_task", "ingest_documents"}
    for tool in tools.values():
        assert tool.title
        assert tool.description is not None
        assert "Call it" in tool.description
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is not None
        assert tool.annotations.open_world_hint == (tool.name in ("search_web", "ingest_documents", "converse"))
        assert bool(tool.annotations.destructive_hint) == (tool.name in destructive)
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"
        assert "$ref" not in json.dumps(tool.output_schema)
        assert tool.input_schema["additionalProperties"] is False
        for name, schema in tool.input_schema["properties"].items():
            assert schema.get("description"), f"{tool.name}.{name} isn't described"
    limit = tools["hybrid_search"].input_schema["properties"]["limit"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 10)
    weight = tools["hybrid_search"].input_schema["properties"]["weight"]
    assert (weight["minimum"], weight["maximum"], weight["default"]) == (0, 1, 0.5)


async def test_store_memory_runs_one_workflow(client: Client, temporal: TemporalClient, user: str) -> None:
    result = await client.call_tool(
        "store_memory", {"conversation_id": "c", "text": "Hi.", "message_type": "human", "user_id": user}
    )

    stored = content(result)
    description = await temporal.get_workflow_handle(workflow_id(result)).describe()
    assert description.workflow_type == "MemoryStorageWorkflow"
    assert stored == {"message_id": stored["message_id"], "memory_forming": False}
    assert stored["message_id"].startswith(workflow_id(result))


async def test_retrieve_memory_finds_a_message_by_meaning_with_its_surroundings(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    for minute, (kind, text) in enumerate(
        [
            ("human", "Good morning!"),
            ("ai", "Good morning. What shall we do?"),
            ("human", "I need to find a birthday present for my nephew, who collects beetles."),
            ("ai", "A good hand lens would please him."),
            ("human", "And I must renew my passport."),
        ]
    ):
        await remember(client, user, text, message_type=kind, timestamp=f"2026-05-03T09:0{minute}:00Z")
    await settled(temporal, user)

    found = content(
        await client.call_tool(
            "retrieve_memory", {"text": "gift ideas for a boy who likes insects", "user_id": user, "limit": 2}
        )
    )

    text = "I need to find a birthday present for my nephew, who collects beetles."
    [best] = [one for one in found["related_conversation"] if one["text"] == text]
    assert best["message_type"] == "human"
    assert best["conversation_id"] == "c1"
    assert datetime.fromisoformat(best["timestamp"]) == datetime(2026, 5, 3, 9, 2, tzinfo=UTC)
    assert [item["text"] for item in best["before"]] == ["Good morning!", "Good morning. What shall we do?"]
    assert [item["text"] for item in best["after"]] == [
        "A good hand lens would please him.",
        "And I must renew my passport.",
    ]
    assert len(found["related_conversation"]) == 2
    head, *lines = found["conversation_summary"].splitlines()
    assert head == "Conversation c1 (2026-05-03):"
    assert "2026-05-03 human: I need to find a birthday present for my nephew, who collects beetles." in lines
    assert found["summary_model"] == "local.extractive"


async def test_an_answer_is_found_by_the_question_before_it(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    for minute, (kind, text) in enumerate(
        [
            ("ai", "Which instrument does your daughter play?"),
            ("human", "Since last autumn, the cello."),
            ("ai", "And your son, does he go to a school nearby?"),
            ("human", "He does. The bus takes ten minutes."),
            ("human", "The daughter of my neighbour has a dog."),
        ]
    ):
        await remember(client, user, text, message_type=kind, timestamp=f"2026-05-03T09:0{minute}:00Z")
    await settled(temporal, user)

    question = {"text": "Which instrument does the daughter play?", "user_id": user, "limit": 2}
    found = content(await client.call_tool("retrieve_memory", question))

    assert [one["text"] for one in found["related_conversation"]] == [
        "Which instrument does your daughter play?",
        "Since last autumn, the cello.",
    ]


async def test_retrieve_memory_of_a_stranger_is_empty(client: Client, user: str) -> None:
    found = content(await client.call_tool("retrieve_memory", {"text": "anything", "user_id": user}))

    assert found == {
        "related_conversation": [],
        "conversation_summary": "",
        "summary_model": None,
        "similar_memories": [],
    }


async def test_a_significant_message_becomes_a_memory_once(client: Client, temporal: TemporalClient, user: str) -> None:
    text = "Please remember that I'm allergic to peanuts and my sister Ines lives in Lisbon."
    first = await remember(client, user, text)
    again = await remember(client, user, text)

    assert first["memory_forming"]
    await settled(temporal, user)
    found = content(await client.call_tool("retrieve_memory", {"text": "food allergies", "user_id": user}))
    [memory] = found["similar_memories"]
    assert memory["content"] == text
    assert memory["importance"] > 0.5
    assert memory["source_messages"] == [first["message_id"], again["message_id"]]


async def test_the_same_fact_said_many_times_at_once_becomes_one_memory(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    ways = ["I'm allergic to peanuts, please remember!", "Please remember that I'm allergic to peanuts."] * 6
    stored = await asyncio.gather(*(remember(client, user, text) for text in ways))
    await settled(temporal, user)

    found = content(await client.call_tool("retrieve_memory", {"text": "food allergies", "user_id": user}))
    [memory] = found["similar_memories"]
    assert sorted(memory["source_messages"]) == sorted(one["message_id"] for one in stored)


async def test_memories_of_one_matter_are_consolidated_listed_pinned_and_split(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    said = [
        "My sister Ines lives in Lisbon.",
        "My dog Rex is a beagle.",
        "My sister Ines lives in Lisbon with her two children.",
        "My dog Bella is a poodle.",
    ]
    for day, text in enumerate(said, 1):
        await remember(client, user, text, timestamp=f"2026-05-0{day}T09:00:00Z")
    await settled(temporal, user)

    found = content(await client.call_tool("retrieve_memory", {"text": "Where does Ines live?", "user_id": user}))
    parent, *others = found["similar_memories"]
    assert [child["content"] for child in parent["children"]] == [said[2], said[0]]
    assert (parent["level"], parent["content"]) == (1, f"{said[2]}\n{said[0]}")
    assert parent["summary"]
    assert len(parent["source_messages"]) == 2
    assert sorted(one["content"] for one in others) == [said[3], said[1]]
    assert all(0 < one["strength"] <= 1 and 0 < one["score"] <= 1 for one in found["similar_memories"])

    first = content(await client.call_tool("list_memories", {"user_id": user, "limit": 2}))
    rest = content(await client.call_tool("list_memories", {"user_id": user, "cursor": first["next_cursor"]}))
    listed = [*first["memories"], *rest["memories"]]
    assert [one["content"] for one in listed] == [said[3], parent["content"], said[1]]
    assert rest["next_cursor"] is None

    pin = {"memory_id": parent["children"][0]["memory_id"], "user_id": user}
    assert content(await client.call_tool("pin_memory", pin)) == {"memory_id": parent["memory_id"], "pinned": True}
    pinned = content(await client.call_tool("list_memories", {"user_id": user, "pinned": True, "order": "strongest"}))
    assert [one["memory_id"] for one in pinned["memories"]] == [parent["memory_id"]]

    split = content(await client.call_tool("split_memory", {"memory_id": parent["memory_id"], "user_id": user}))
    assert split["children"] == [child["memory_id"] for child in parent["children"]]
    await remember(client, user, "My sister Ines lives in Lisbon!")
    await settled(temporal, user)
    alone = content(await client.call_tool("list_memories", {"user_id": user}))["memories"]
    assert [(one["content"], one["level"]) for one in alone] == [(text, 0) for text in said[::-1]]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("thanks!", "human"), ("ok", "human"), ("I live in Oslo and always will, remember that.", "ai")],
)
async def test_small_talk_and_answers_form_no_memory(client: Client, user: str, text: str, kind: str) -> None:
    assert not (await remember(client, user, text, message_type=kind))["memory_forming"]


async def test_cache_hits_the_same_question_and_one_that_means_the_same(client: Client, user: str) -> None:
    query = "How tall is Mount Everest?"
    stored = content(
        await client.call_tool(
            "semantic_cache_response", {"query": query, "response": "8,849 m.", "user_id": user, "ttl_seconds": 60}
        )
    )
    expires = datetime.fromisoformat(stored["expires_at"])
    assert timedelta(0) < expires - datetime.now(UTC) <= timedelta(seconds=60)

    identical = content(
        await client.call_tool("check_semantic_cache", {"query": "how  tall is mount EVEREST?", "user_id": user})
    )
    similar = content(
        await client.call_tool(
            "check_semantic_cache", {"query": "What is the height of Mount Everest?", "user_id": user}
        )
    )
    other = content(
        await client.call_tool("check_semantic_cache", {"query": "Which wine goes with fish?", "user_id": user})
    )

    assert (identical["hit"], identical["response"], identical["similarity"]) == (True, "8,849 m.", 1.0)
    assert identical["cached_query"] == query
    assert 0 <= identical["age_seconds"] < 60
    assert (similar["hit"], similar["response"]) == (True, "8,849 m.")
    assert similar["similarity"] < 1
    assert (other["hit"], other["response"], other["cached_query"]) == (False, None, None)
    assert other["similarity"] < similar["similarity"]


async def test_an_identical_question_is_answered_without_embedding_it(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    query = {"query": "Is this cached?", "user_id": user}
    await client.call_tool("semantic_cache_response", query | {"response": "Yes."})

    result = await client.call_tool("check_semantic_cache", query)

    assert content(result)["hit"]
    assert [step.name for step in await steps_of(temporal, workflow_id(result))] == ["cached_answer"]


async def keep(client: Client, user: str, query: str, response: str, **arguments: Any) -> None:
    call = {"query": query, "response": response, "user_id": user, **arguments}
    content(await client.call_tool("semantic_cache_response", call))


async def check(client: Client, user: str, query: str, **arguments: Any) -> dict[str, Any]:
    return content(await client.call_tool("check_semantic_cache", {"query": query, "user_id": user, **arguments}))


async def test_cache_threshold_decides(client: Client, user: str) -> None:
    await keep(client, user, "What's the capital of France?", "Paris.")
    near = "What is France's capital?"

    found = await check(client, user, near)
    assert (found["hit"], found["similarity"] < 1) == (True, True)
    assert not (await check(client, user, near, threshold=1))["hit"]


async def test_a_question_that_only_looks_the_same_is_a_miss_at_any_threshold(client: Client, user: str) -> None:
    await keep(client, user, "What's the capital of France?", "Paris.")

    for threshold in ({}, {"threshold": 0}):
        found = await check(client, user, "What's the capital of Germany?", **threshold)
        assert (found["hit"], found["response"]) == (False, None)
        assert found["similarity"] > 0.85


async def test_a_nearer_question_of_another_meaning_does_not_hide_the_right_one(client: Client, user: str) -> None:
    await keep(client, user, "How long should I cook 3 eggs until they are soft?", "Three.")
    await keep(client, user, "Until they are soft, how long do I need to cook 2 eggs?", "Two.")

    found = await check(client, user, "How long should I cook 2 eggs until they are soft?")

    assert (found["hit"], found["response"]) == (True, "Two.")


async def test_a_cached_answer_stays_in_its_scope(client: Client, user: str) -> None:
    query, similar = "How do I deploy the service?", "What's the best way to deploy the service?"
    await keep(client, user, query, "By hand.")
    await keep(client, user, query, "With make.", namespace="backend")
    await keep(client, user, query, "As Nova says.", namespace="backend", model="nova")

    for asked in (query, similar):
        assert (await check(client, user, asked))["response"] == "By hand."
        assert (await check(client, user, asked, namespace="backend"))["response"] == "With make."
        assert (await check(client, user, asked, namespace="backend", model="nova"))["response"] == "As Nova says."
        assert not (await check(client, user, asked, namespace="frontend"))["hit"]
        assert not (await check(client, user, asked, model="nova"))["hit"]


async def test_cached_answers_are_dropped(client: Client, user: str) -> None:
    for query, scope in (("Is it up?", {}), ("Is it up?", {"namespace": "a"}), ("Where is it?", {"namespace": "a"})):
        await keep(client, user, query, "Yes.", **scope)
        await keep(client, f"{user}-other", query, "Yes.", **scope)

    async def drop(**arguments: Any) -> int:
        result = content(await client.call_tool("invalidate_cache", {"user_id": user, **arguments}))
        removed: int = result["removed"]
        return removed

    assert await drop(query="is it UP?", namespace="a") == 1
    assert not (await check(client, user, "Is it up?", namespace="a"))["hit"]
    assert (await check(client, user, "Is it up?"))["hit"]
    assert await drop(namespace="a") == 1
    assert await drop(query="Where is it?") == 0
    assert await drop(everything=True) == 1
    assert not (await check(client, user, "Is it up?"))["hit"]
    assert (await check(client, f"{user}-other", "Where is it?", namespace="a"))["hit"]


async def test_cache_forgets_what_has_expired(client: Client, user: str) -> None:
    query = {"query": "What is the time?", "user_id": user}
    past = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    await client.call_tool(
        "semantic_cache_response", query | {"response": "Ten.", "ttl_seconds": 60, "timestamp": past}
    )

    assert not content(await client.call_tool("check_semantic_cache", query))["hit"]


async def test_caching_again_replaces_the_answer(client: Client, user: str) -> None:
    query = {"query": "Who is on call?", "user_id": user}
    first = content(await client.call_tool("semantic_cache_response", query | {"response": "Ana."}))
    second = content(await client.call_tool("semantic_cache_response", query | {"response": "Ben."}))

    assert first["entry_id"] == second["entry_id"]
    assert content(await client.call_tool("check_semantic_cache", query))["response"] == "Ben."


async def test_users_never_see_each_other(client: Client, temporal: TemporalClient, user: str) -> None:
    stranger = f"{user}-stranger"
    secret = "Remember that my locker code is 4711 and I live in Bergen."
    await remember(client, user, secret)
    await settled(temporal, user)
    await client.call_tool("semantic_cache_response", {"query": secret, "response": secret, "user_id": user})

    recalled = content(await client.call_tool("retrieve_memory", {"text": secret, "user_id": stranger}))
    cached = content(
        await client.call_tool("check_semantic_cache", {"query": secret, "user_id": stranger, "threshold": 0})
    )
    found = content(await client.call_tool("hybrid_search", {"query": secret, "user_id": stranger}))

    assert recalled["related_conversation"] == recalled["similar_memories"] == found["results"] == []
    assert cached == {
        "hit": False,
        "response": None,
        "similarity": None,
        "cached_query": None,
        "age_seconds": None,
        "expires_at": None,
    }


async def test_search_web_without_a_key_names_the_setting(client: Client) -> None:
    result = await client.call_tool("search_web", {"query": "news"})

    assert "TAVILY_API_KEY" in error(result)
    assert workflow_id(result).startswith("search_web-")


LONG = "x" * 32_001
BAD = [
    ("hybrid_search", {"query": ""}, "query"),
    ("hybrid_search", {"query": "   "}, "query"),
    ("hybrid_search", {"query": "x" * 4001}, "query"),
    ("hybrid_search", {}, "query"),
    ("hybrid_search", {"query": "x", "limit": 0}, "limit"),
    ("hybrid_search", {"query": "x", "limit": 101}, "limit"),
    ("hybrid_search", {"query": "x", "limit": "many"}, "limit"),
    ("hybrid_search", {"query": "x", "weight": 1.5}, "weight"),
    ("hybrid_search", {"query": "x", "weight": -0.1}, "weight"),
    ("hybrid_search", {"query": "x", "collection": "nowhere"}, "nowhere"),
    ("hybrid_search", {"query": "x", "filter": {"$where": "1"}}, "$where"),
    ("hybrid_search", {"query": "x", "filter": {"source": {"$regex": "."}}}, "$regex"),
    ("hybrid_search", {"query": "x", "filter": {"a'; drop table documents": 1}}, "filter"),
    ("hybrid_search", {"query": "x", "filter": "source = 1"}, "filter"),
    ("hybrid_search", {"query": "x", "user_id": ""}, "user_id"),
    ("hybrid_search", {"query": "x", "user_id": "a\x00b"}, "user_id"),
    ("hybrid_search", {"query": "x", "user_id": "null"}, "user_id"),
    ("hybrid_search", {"query": "x", "user": "alice"}, "'user'"),
    ("store_memory", {"conversation_id": "c", "text": "", "message_type": "human"}, "text"),
    ("store_memory", {"conversation_id": "c", "text": LONG, "message_type": "human"}, "text"),
    ("store_memory", {"conversation_id": "", "text": "x", "message_type": "human"}, "conversation_id"),
    ("store_memory", {"conversation_id": "c", "text": "x", "message_type": "robot"}, "message_type"),
    ("store_memory", {"conversation_id": "c", "text": "x"}, "message_type"),
    ("store_memory", {"conversation_id": "c", "text": "x", "message_type": "ai", "timestamp": "soon"}, "timestamp"),
    ("store_memory", {"conversation_id": "c", "text": "x", "message_type": "ai", "timestamp": 12}, "timestamp"),
    *(
        ("store_memory", {"conversation_id": "c", "text": "x", "message_type": "ai", "timestamp": time}, "timestamp")
        for time in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "2099-01-01")
    ),
    ("hybrid_search", {"query": "x", "filter": {"title": "x" * 20_000}}, "filter"),
    ("search_web", {"query": "x" * 401}, "400 characters"),
    ("retrieve_memory", {"text": " "}, "text"),
    ("retrieve_memory", {"text": "x", "limit": 1000}, "limit"),
    ("list_memories", {"limit": 0}, "limit"),
    ("list_memories", {"order": "oldest"}, "order"),
    ("list_memories", {"cursor": "nonsense"}, "cursor"),
    ("pin_memory", {"memory_id": "gone"}, "memory_id"),
    ("pin_memory", {}, "memory_id"),
    ("split_memory", {"memory_id": "gone"}, "memory_id"),
    ("forget", {}, "exactly one of ids"),
    ("forget", {"everything": False}, "exactly one of ids"),
    ("forget", {"everything": True, "ids": ["x"]}, "exactly one of ids"),
    ("forget", {"query": "x", "conversation_id": "c"}, "exactly one of ids"),
    ("forget", {"ids": []}, "ids"),
    ("forget", {"ids": ["x"] * 101}, "ids"),
    ("forget", {"ids": ["x", ""]}, "ids"),
    ("forget", {"query": " "}, "query"),
    ("forget", {"query": "x", "limit": 101}, "limit"),
    ("forget", {"query": "x", "threshold": 1.5}, "threshold"),
    ("forget", {"query": "x", "confirmation": "0" * 32}, "confirmation"),
    ("forget", {"conversation_id": "c", "confirmation": "0" * 32}, "confirmation"),
    ("semantic_cache_response", {"query": "x", "response": ""}, "response"),
    ("semantic_cache_response", {"query": "x", "response": "y", "ttl_seconds": 0}, "ttl_seconds"),
    ("semantic_cache_response", {"query": "x", "response": "y", "timestamp": "2026-13-01"}, "timestamp"),
    ("check_semantic_cache", {"query": ""}, "query"),
    ("check_semantic_cache", {"query": "x", "threshold": 2}, "threshold"),
    ("check_semantic_cache", {"query": "x", "namespace": ""}, "namespace"),
    ("invalidate_cache", {}, "everything=true"),
    ("invalidate_cache", {"everything": True, "model": "x"}, "everything"),
    ("search_web", {"query": ""}, "query"),
    ("search_web", {"query": "x", "max_results": 0}, "max_results"),
    ("search_web", {"query": "x", "topic": "gossip"}, "topic"),
    ("search_web", {"query": "x", "time_range": "century"}, "time_range"),
]


@pytest.mark.parametrize(("tool", "arguments", "named"), BAD)
async def test_bad_input_is_named(client: Client, tool: str, arguments: dict[str, Any], named: str) -> None:
    text = error(await client.call_tool(tool, arguments))

    assert named in text
    assert len(text) < 400
    assert LONG not in text


async def test_an_unknown_tool_is_an_error_that_names_the_tools(client: Client) -> None:
    text = error(await client.call_tool("hybrid_serch", {}))

    assert "hybrid_serch" in text
    assert "hybrid_search" in text


async def test_many_calls_at_once(client: Client, user: str) -> None:
    results = await asyncio.gather(*(remember(client, user, f"Note number {number}.") for number in range(24)))

    assert len({result["message_id"] for result in results}) == 24
    found = content(await client.call_tool("retrieve_memory", {"text": "note number", "user_id": user, "limit": 100}))
    assert len(found["related_conversation"]) == 24


async def test_unicode_survives(client: Client, user: str) -> None:
    text = "Grüße 👩‍🚀, 東京の天気は？ مرحبا — naïve “quotes” \\ and NUL-free"
    await remember(client, user, text)

    found = content(await client.call_tool("retrieve_memory", {"text": "東京の天気", "user_id": user}))
    assert found["related_conversation"][0]["text"] == text


async def test_resources_say_how_it_is(client: Client) -> None:
    [health] = (await client.read_resource("health://status")).contents
    report = json.loads(health.text)  # type: ignore[union-attr]
    assert report["status"] == "ok"
    assert {piece["piece"] for piece in report["pieces"]} == {"workflow engine", "store", "web search"}

    [settings] = (await client.read_resource("config://settings")).contents
    shown = json.loads(settings.text)  # type: ignore[union-attr]
    assert shown["EMBEDDING_MODEL_ID"] == "local.multilingual-e5-small"
    assert shown["TAVILY_API_KEY"] is None


async def test_prompt_puts_memory_before_a_model(client: Client) -> None:
    prompt = await client.get_prompt(
        "conversation_prompt",
        {"user_id": "ada", "conversation_summary": "They like tea.", "similar_memories": "Allergic to nuts."},
    )

    [only] = prompt.messages
    assert "ada" in only.content.text  # type: ignore[union-attr]
    assert "They like tea." in only.content.text  # type: ignore[union-attr]
    assert "Allergic to nuts." in only.content.text  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("conversation_prompt", {}, "user_id is required"),
        ("conversation_prompt", {"user_id": "ada", "colour": "red"}, "no argument 'colour'"),
        ("prompt", {}, "no prompt 'prompt'"),
    ],
)
async def test_a_wrong_request_for_a_prompt_says_what_is_wrong(
    home: Path, stack: Addresses, mode: str, name: str, arguments: dict[str, str], part: str
) -> None:
    async with serve(home, mode=mode) as client:
        with pytest.raises(MCPError, match=part) as raised:
            await client.get_prompt(name, arguments)
    assert raised.value.error.code == INVALID_PARAMS
