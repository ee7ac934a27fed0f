"""Forgetting over a real client: what is shown beforehand, what is refused, and that every copy is gone afterwards."""

from typing import Any

from mcp import Client
from temporalio.client import Client as TemporalClient

from tests.conftest import content, error, workflow_id
from tests.e2e.test_tools import remember, settled

TOM = "Please remember that Tom and I broke up and he lives in Bergen now."
PEANUTS = "Please remember that I'm allergic to peanuts."


async def forget(client: Client, user: str, **arguments: Any) -> dict[str, Any]:
    return content(await client.call_tool("forget", {"user_id": user, **arguments}))


async def recall(client: Client, user: str, text: str) -> tuple[set[str], set[str]]:
    """Texts of the messages and of the memories that bear on a text."""
    found = content(await client.call_tool("retrieve_memory", {"text": text, "user_id": user}))
    return (
        {one["text"] for one in found["related_conversation"]},
        {one["content"] for one in found["similar_memories"]},
    )


async def memory_of(client: Client, temporal: TemporalClient, user: str, message_id: str) -> str:
    """Id of the memory that forms of a message."""
    await settled(temporal, user)
    found = content(await client.call_tool("retrieve_memory", {"text": "memory", "user_id": user}))
    [memory_id] = [one["memory_id"] for one in found["similar_memories"] if message_id in one["source_messages"]]
    return str(memory_id)


async def test_a_memory_is_forgotten_by_id_with_its_message(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    stored = await remember(client, user, TOM)
    await remember(client, user, PEANUTS, conversation="c2")
    memory_id = await memory_of(client, temporal, user, stored["message_id"])

    result = await client.call_tool("forget", {"ids": [memory_id, "no such id"], "user_id": user})

    description = await temporal.get_workflow_handle(workflow_id(result)).describe()
    assert description.workflow_type == "ForgetWorkflow"
    assert content(result) == {
        "messages": 1,
        "memories": 1,
        "cached_answers": 0,
        "unknown_ids": ["no such id"],
        "matches": [],
        "confirmation": None,
    }
    assert await recall(client, user, TOM) == ({PEANUTS}, {PEANUTS})
    again = await forget(client, user, ids=[memory_id, stored["message_id"]])
    assert (again["messages"], again["unknown_ids"]) == (0, [memory_id, stored["message_id"]])


async def test_a_query_shows_what_it_means_and_forgets_exactly_that_once_confirmed(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    stored = await remember(client, user, TOM)
    await remember(client, user, PEANUTS)
    memory_id = await memory_of(client, temporal, user, stored["message_id"])
    cached = content(
        await client.call_tool(
            "semantic_cache_response", {"query": "Where is Tom?", "response": "In Bergen.", "user_id": user}
        )
    )

    about_tom = {"query": "Tom", "threshold": 0.9}
    shown = await forget(client, user, **about_tom)

    assert {(one["kind"], one["id"]) for one in shown["matches"]} == {
        ("message", stored["message_id"]),
        ("memory", memory_id),
        ("cached_answer", cached["entry_id"]),
    }
    assert all(0.7 < one["similarity"] < 1 for one in shown["matches"])
    assert (shown["messages"], shown["memories"], shown["cached_answers"]) == (0, 0, 0)
    assert await recall(client, user, TOM) == ({TOM, PEANUTS}, {TOM, PEANUTS})

    # The same query means more by now: nothing goes that wasn't shown.
    late = await remember(client, user, "Tom called.", message_type="ai")
    for wrong in (shown["confirmation"], "0" * 32):
        refused = await client.call_tool("forget", {**about_tom, "confirmation": wrong, "user_id": user})
        assert "confirmation: " in error(refused)
    assert len((await recall(client, user, TOM))[0]) == 3
    await forget(client, user, ids=[late["message_id"]])

    done = await forget(client, user, **about_tom, confirmation=shown["confirmation"])

    assert (done["messages"], done["memories"], done["cached_answers"]) == (1, 1, 1)
    assert (done["matches"], done["confirmation"]) == ([], None)
    assert await recall(client, user, TOM) == ({PEANUTS}, {PEANUTS})
    assert (await forget(client, user, **about_tom)) | {"matches": None} == done | {
        "messages": 0,
        "memories": 0,
        "cached_answers": 0,
        "matches": None,
    }


async def test_a_query_finds_what_is_meant_in_other_words(client: Client, user: str) -> None:
    salary = await remember(client, user, "My salary is 4,200 euros a month.", message_type="ai")
    await remember(client, user, "Good morning!")

    shown = await forget(client, user, query="how much money I make")

    assert [one["id"] for one in shown["matches"]] == [salary["message_id"]]


async def test_a_conversation_and_then_everything_is_forgotten(
    client: Client, temporal: TemporalClient, user: str
) -> None:
    stranger = f"{user}-stranger"
    await remember(client, user, TOM, conversation="c1")
    await remember(client, user, PEANUTS, conversation="c2")
    await remember(client, stranger, TOM, conversation="c1")
    await settled(temporal, user)
    query = {"query": "Where is Tom?", "user_id": user}
    await client.call_tool("semantic_cache_response", query | {"response": "In Bergen."})

    first = await forget(client, user, conversation_id="c1")
    assert (first["messages"], first["memories"], first["cached_answers"]) == (1, 1, 0)
    assert await recall(client, user, TOM) == ({PEANUTS}, {PEANUTS})

    second = await forget(client, user, everything=True, confirm=True)
    assert (second["messages"], second["memories"], second["cached_answers"]) == (1, 1, 1)
    assert await recall(client, user, TOM) == (set(), set())
    assert not content(await client.call_tool("check_semantic_cache", query))["hit"]

    for again in ({"conversation_id": "c1"}, {"everything": True, "confirm": True}):
        assert (await forget(client, user, **again))["messages"] == 0
    assert TOM in (await recall(client, stranger, TOM))[0]
