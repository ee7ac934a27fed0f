"""Answers by extraction: what is quoted stands in a passage, and what has no bearing isn't quoted.

The embedding model here is one of words: texts are near each other by the words that they share.
"""

from collections import Counter
from math import sqrt

from activities.models import Passage
from mcp_server.local.answering import MAX_SENTENCES, NOTHING, PREFACE, Answer, answer, asked_of
from mcp_server.local.extractive import tokens

HARBOUR = Passage(
    id="1",
    kind="document",
    title="Harbour rules",
    text="# Winter\n\nThe **harbour** closes for ships in November. Tea is served at four.\n\nWhen does it open?",
)
HOME = Passage(id="2", kind="message", title="said by the user", text="Please remember that I live in Oslo.")


async def embed(texts: list[str], is_query: bool) -> list[list[float]]:
    vectors = []
    for text in texts:
        vector = [0.0] * 512
        for token, count in Counter(tokens(text)).items():
            vector[sum(token.encode()) % 512] += count
        norm = sqrt(sum(value * value for value in vector)) or 1.0
        vectors.append([value / norm for value in vector])
    return vectors


async def asked(question: str, *passages: Passage, earlier: tuple[str, ...] = (), most: int = 500) -> Answer:
    return await answer(question, dict(enumerate(passages, 1)), earlier, most, embed)


def quoted(given: Answer) -> list[str]:
    assert given.text.startswith(PREFACE)
    return given.text.splitlines()[1:]


async def test_the_sentence_that_answers_is_quoted_with_its_number() -> None:
    given = await asked("When does the harbour close for ships?", HOME, HARBOUR)
    assert quoted(given) == ["- The harbour closes for ships in November. [2]"]


async def test_a_documents_own_notes_are_no_citations() -> None:
    page = Passage(id="1", kind="document", text="The harbour closes for ships in November.[1][12]")
    assert quoted(await asked("When does the harbour close for ships?", page)) == [
        "- The harbour closes for ships in November. [1]"
    ]


async def test_the_user_is_quoted_as_such() -> None:
    assert quoted(await asked("Where do I live?", HARBOUR, HOME)) == [
        "- You said: Please remember that I live in Oslo. [2]"
    ]


async def test_what_was_said_in_the_conversation_is_quoted_without_a_number() -> None:
    given = await asked("What is the name of my dog?", HARBOUR, earlier=("The name of my dog is Rex.",))
    assert quoted(given) == ["- You said: The name of my dog is Rex."]


async def test_nothing_bears_on_it() -> None:
    assert (await asked("Who composed the ninth symphony?", HARBOUR, HOME)).text == NOTHING
    assert (await asked("When does the harbour close?")).text == NOTHING
    assert (await asked("?!", HARBOUR)).text == NOTHING


async def test_an_earlier_extract_is_not_quoted_again() -> None:
    said = Passage(id="3", kind="message", text=f"{PREFACE}\n- The harbour closes for ships in November. [1]")
    assert (await asked("When does the harbour close for ships?", said)).text == NOTHING


async def test_length_is_kept() -> None:
    passages = [
        Passage(id=str(number), kind="document", text=f"The harbour closes for ships in month {number}.")
        for number in range(9)
    ]
    assert len(quoted(await asked("When does the harbour close for ships?", *passages))) == MAX_SENTENCES
    short = await asked("When does the harbour close for ships?", *passages, most=1)
    assert short.clipped
    assert len(quoted(short)) == 1


def test_a_question_that_points_back_is_read_with_the_one_before() -> None:
    assert asked_of("And when does it open?", ["Does the harbour close?"]) == (
        "Does the harbour close? And when does it open?"
    )
    assert asked_of("When does the museum open its doors?", ["Hello"]) != "When does the museum open its doors?"
    assert asked_of("When does the museum open?", ["Hello"]) == "When does the museum open?"
