"""What a conversation decides by itself: which answers are cached, what fits a model, how an answer shows sources."""

import base64
from datetime import UTC, datetime

import pytest
from mcp.server.mcpserver.exceptions import ToolError

from activities.conversation import conversation_workflow_id, stored_ids
from activities.models import Citation, ConversationMessage, Passage
from activities.turn import latest, stands_alone, tokens_of, with_sources, within, without_sources
from mcp_server.tools.conversation import image_bytes

DAY = datetime(2026, 5, 3, tzinfo=UTC)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@pytest.mark.parametrize(
    ("prompt", "begins", "later"),
    [
        ("Where was the first lighthouse built?", True, True),
        ("What is the capital of Portugal?", True, True),
        ("Wo wurde der erste Leuchtturm gebaut?", True, False),
        ("And the second lighthouse of the harbour?", True, False),
        ("Who built it in the end?", True, False),
        ("What about the lighthouse of Genoa?", True, False),
        ("Why?", True, False),
        ("Where is my locker?", False, False),
        ("What did you say about the lighthouse?", False, False),
        ("What's the weather like in Oslo?", False, False),
        ("Who is the current director of the museum?", False, False),
        ("?!", False, False),
    ],
)
def test_answers_are_cached_of_questions_that_mean_the_same_anywhere(prompt: str, begins: bool, later: bool) -> None:
    assert stands_alone(prompt, begins=True) is begins
    assert stands_alone(prompt, begins=False) is later


def test_an_answer_shows_its_sources_and_is_read_without_them() -> None:
    text = "It stood in Alexandria [1], and you saw it [2][3].\n\nSources: none of these."
    citations = [
        Citation(number=1, id="a", kind="document", text="t", title="Light\nhouses", source="/l.pdf", page=3),
        Citation(number=2, id="b", kind="message", text="t", title="said by the user", source="trip", timestamp=DAY),
        Citation(number=3, id="c", kind="memory", text="t", timestamp=DAY),
    ]

    shown = with_sources(text, citations)

    assert shown == (
        f"{text}\n\nSources:\n[1] Light houses, page 3 (/l.pdf)\n"
        "[2] said by the user on 2026-05-03, in conversation trip\n[3] remembered, said on 2026-05-03"
    )
    assert without_sources(shown) == text
    assert with_sources(text, []) == without_sources(text) == text


def test_a_model_is_given_the_last_messages_that_fit() -> None:
    said = [
        ConversationMessage(message_id=str(number), message_type="human", text="x" * 40, timestamp=DAY)
        for number in range(5)
    ]

    assert tokens_of("x" * 40) == 10
    assert [one.message_id for one in latest(said, 39)] == ["2", "3", "4"]
    assert latest(said, 9) == []
    assert latest(said, 1000) == said


def test_a_budget_is_shared_between_kinds_and_nothing_is_said_twice() -> None:
    def passage(kind: str, text: str) -> Passage:
        return Passage.model_validate({"id": text, "kind": kind, "text": text})

    documents = [passage("document", f"document {number} " + "x" * 28) for number in range(5)]
    memories = [passage("memory", "I live in Oslo."), passage("memory", f"memory {'y' * 33}")]
    messages = [passage("message", "I live in Oslo.")]

    kept = within(30, documents, messages, memories)

    assert [(one.kind, one.text[:10]) for one in kept] == [
        ("document", "document 0"),
        ("message", "I live in "),
        ("document", "document 1"),
    ]
    assert within(20, [passage("document", "z" * 4_000)])[0].text.endswith("…")


def test_ids_are_one_for_a_message_and_differ_between_all_others() -> None:
    places = [("q", "ann", "c"), ("q", "bob", "c"), ("q", "ann", "d"), ("qa", "nn", "c"), ("r", "ann", "c")]
    workflows = {conversation_workflow_id(*place) for place in places}
    assert len(workflows) == len(places)
    stored = {stored_ids(workflow_id, sender)[0] for workflow_id in workflows for sender in ("1", "2")}
    assert len(stored) == 2 * len(places)
    assert stored_ids("w", "1") == stored_ids("w", "1")


@pytest.mark.parametrize(
    "image",
    [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "data:;base64," + base64.b64encode(PNG).decode(),
        base64.b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        base64.encodebytes(PNG).decode(),
    ],
)
def test_an_image_is_taken_as_data_uri_or_base64(image: str) -> None:
    assert image_bytes(image) == PNG


@pytest.mark.parametrize("image", ["/home/ann/buoy.png", "https://example.com/buoy.png", "file:///etc/passwd"])
def test_a_path_or_url_is_left_to_what_reads_it(image: str) -> None:
    assert image_bytes(image) is None


@pytest.mark.parametrize(
    "image", ["buoy.png", "data:image/png,raw", "data:image/png;base64,%%%", "QUJD", "not base 64!" * 9]
)
def test_what_is_no_image_is_refused(image: str) -> None:
    with pytest.raises(ToolError, match="image: "):
        image_bytes(image)
