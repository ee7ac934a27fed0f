"""What `bench.chaos` would report: each thing that can go wrong is seen, and nothing where all is right."""

from typing import Any

import pytest

from bench.chaos_calls import Call, Ledger, Outcome, Thing, draw, drawn, wrong
from bench.chaos_checks import Findings, Records, Workflow, compare, compare_contents

SAID = "Please remember that my violin zq1 is kept in the attic, on shelf 3."
STORED = {"message_id": "store_memory-1-a", "memory_forming": True}


def message(outcome: Outcome = "done", **fields: Any) -> tuple[Ledger, Call]:
    """A ledger of one call, which stores a message."""
    ledger, thing = Ledger(), Thing("message", "ann", "trip", "zq1")
    arguments = {"user_id": "ann", "conversation_id": "trip", "text": SAID, "message_type": "human"}
    call = Call(0, "a", "store_memory", arguments, thing, changes=True, puts=SAID, outcome=outcome)
    if outcome == "done":
        call.result, call.workflow_id = STORED, "store_memory-1"
    for name, value in fields.items():
        setattr(call, name, value)
    thing.calls.append(call)
    ledger.calls.append(call)
    ledger.things.append(thing)
    return ledger, call


def forgetting(ledger: Ledger, outcome: Outcome = "done") -> Ledger:
    """The same, and the message is forgotten."""
    [thing] = ledger.things
    ids = {"user_id": "ann", "ids": [STORED["message_id"]]}
    call = Call(1, "a", "forget", ids, thing, changes=True, outcome=outcome, workflow_id="forget-1")
    thing.calls.append(call)
    ledger.calls.append(call)
    return ledger


def stored(times: int = 1, **fields: Any) -> Records:
    """What the store holds where it was stored."""
    rows = [(f"store_memory-{number}-a", "ann", "trip", SAID, True) for number in range(1, times + 1)]
    records = Records(messages=rows, summaries={("ann", "trip"): times})
    records.sources.update(name for name, *_ in rows)
    for name, value in fields.items():
        setattr(records, name, value)
    return records


def workflow(
    status: str = "COMPLETED", workflow_id: str = "store_memory-1", argument: str = f'{{"text":"{SAID}"}}'
) -> Workflow:
    return Workflow(workflow_id, status, argument)


def found(ledger: Ledger, workflows: list[Workflow], records: Records) -> dict[str, int]:
    findings = Findings()
    compare(ledger, workflows, records, findings)
    return {name: count for name, count in findings.counts.items() if count}


@pytest.mark.parametrize("outcome", ["done", "goes on", "no answer"])
def test_what_is_stored_once_is_right(outcome: Outcome) -> None:
    assert found(message(outcome)[0], [workflow()], stored()) == {}


@pytest.mark.parametrize("outcome", ["failed", "no answer"])
def test_what_was_never_begun_and_isn_t_there_is_right(outcome: Outcome) -> None:
    assert found(message(outcome)[0], [], Records()) == {}


def test_what_may_have_been_cancelled_in_the_middle_is_right_either_way() -> None:
    for records in (Records(), stored()):
        assert (
            found(message("goes on", ended=True, workflow_id="store_memory-1")[0], [workflow("CANCELED")], records)
            == {}
        )


@pytest.mark.parametrize("outcome", ["done", "goes on", "no answer"])
def test_what_is_done_and_not_there_is_lost(outcome: Outcome) -> None:
    assert found(message(outcome)[0], [workflow()], Records()) == {"lost": 1}


def test_what_is_there_twice_is_doubled() -> None:
    assert found(message()[0], [workflow()], stored(2)) == {"doubled": 1}
    assert (
        found(message("no answer")[0], [workflow(), workflow(workflow_id="store_memory-2")], stored())["doubled"] == 1
    )
    records = stored()
    records.sources["store_memory-1-a"] = 2
    assert found(message()[0], [workflow()], records) == {"doubled": 1}


def test_what_is_there_without_its_workflow_is_untrue() -> None:
    assert found(message("no answer")[0], [], stored()) == {"untrue": 1}


def test_an_answer_that_says_something_else_than_its_workflow_is_untrue() -> None:
    assert found(message("failed", said="Nothing was started.")[0], [workflow()], stored()) == {"untrue": 1}
    assert (
        found(message("failed", said="It isn't known whether the work was started.")[0], [workflow()], stored()) == {}
    )
    assert found(message("goes on", workflow_id="store_memory-1")[0], [workflow("FAILED")], Records()) == {"untrue": 1}
    assert found(message(result={**STORED, "message_id": "another"})[0], [workflow()], stored()) == {"untrue": 1}
    assert found(message()[0], [workflow("RUNNING")], stored())["untrue"] == 1


def test_what_was_forgotten_and_is_there_is_untrue() -> None:
    done = [workflow(), workflow(workflow_id="forget-1")]
    assert found(forgetting(message()[0]), done, Records()) == {}
    assert found(forgetting(message()[0]), done, stored()) == {"untrue": 1}
    # What its memory is formed of is gone.
    kept = Records()
    kept.sources.update(["store_memory-1-a"])
    assert found(forgetting(message()[0]), done, kept) == {"untrue": 1}


def test_a_message_without_its_memory_or_its_summary_is_lost() -> None:
    assert found(message()[0], [workflow()], stored(sources=Records().sources)) == {"lost": 1}
    rows = [(*row[:4], False) for row in stored().messages]
    assert found(message()[0], [workflow()], stored(messages=rows, summaries={})) == {"lost": 1}
    assert found(message()[0], [workflow()], stored(summaries={("ann", "trip"): 2})) == {
        "indexes and caches that disagree": 1
    }


def test_a_message_that_is_found_without_the_one_before_it_is_lost() -> None:
    def two(first: Outcome, *, again: bool = False) -> Ledger:
        """A ledger of two messages of one conversation, the second of which may be stored by two calls."""
        ledger = message(first)[0]
        for number in range(1, 2 + again):
            arguments = {"text": "And zq2.", "message_type": "ai"}
            call = Call(number, "a", "store_memory", arguments, ledger.things[0], outcome="done")
            ledger.calls.append(call)
        return ledger

    def alone(ledger: Ledger, *texts: str) -> dict[str, int]:
        return found(ledger, [workflow()], stored(alone=set(texts)))

    assert alone(two("done"), SAID) == {}
    assert alone(two("done"), SAID, "And zq2.") == {"lost": 1}
    assert alone(two("done", again=True), SAID, "And zq2.") == {"lost": 1}
    # Whether the one before it was there already isn't known; forgotten, it isn't any more.
    assert alone(two("no answer"), SAID, "And zq2.") == {}
    assert alone(two("no answer", again=True), SAID, "And zq2.") == {}
    done = [workflow(), workflow(workflow_id="forget-1")]
    assert found(forgetting(two("done")), done, Records(alone={"And zq2."})) == {}


def test_a_message_that_is_found_by_other_texts_than_its_own_disagrees() -> None:
    rows = [("one", "ann", "trip", "Where?", True), ("two", "ann", "trip", "There.", True)]
    previous = {"one": None, "two": "one"}

    def said(contexts: dict[str, str], previous: dict[str, str | None] = previous) -> tuple[set[str], int]:
        records = Records(messages=rows)
        records.take_contexts(contexts, previous)
        return records.alone, len(records.disagreeing)

    right = {"one": "Where?", "two": "Where?\nThere."}
    assert said(right) == ({"Where?"}, 0)
    assert said({"one": "Where?"}) == ({"Where?"}, 1)
    assert said({**right, "three": "Gone."}) == ({"Where?"}, 1)
    assert said({**right, "two": "There."}) == ({"Where?"}, 1)
    assert said({**right, "one": "There.\nWhere?"}) == ({"Where?"}, 1)
    assert said(right, {"one": None, "two": "gone"}) == ({"Where?"}, 1)


def test_an_answer_or_a_document_that_is_another_is_lost() -> None:
    ledger = Ledger()
    answer, document = Thing("answer", "ann", "Who?", "zq2"), Thing("document", "ann", "note zq3", "zq3")
    for number, (thing, tool) in enumerate([(answer, "semantic_cache_response"), (document, "ingest_documents")]):
        ledger.things.append(thing)
        for text in ("An older zq3.", "A newer zq3."):
            arguments = {"query": "Who?", "response": text, "name": "note zq3", "text": text}
            call = Call(number, "a", tool, arguments, thing, changes=True, puts=text, outcome="done")
            thing.calls.append(call)
            ledger.calls.append(call)

    def records(text: str) -> Records:
        return Records(
            answers={("ann", "Who?"): [text]}, chunks={("ann", "note zq3"): [text]}, listed={("ann", "note zq3"): 1}
        )

    assert found(ledger, [], records("A newer zq3.")) == {}
    assert found(ledger, [], records("An older zq3.")) == {"lost": 2}
    mixed = records("A newer zq3.")
    mixed.chunks["ann", "note zq3"] = ["A newer zq3.", "An older zq3."]
    assert found(ledger, [], mixed) == {"lost": 1, "indexes and caches that disagree": 1}


def test_a_result_that_isn_t_of_the_records_is_wrong() -> None:
    thing = Thing("answer", "ann", "Who?", "zq1")
    hit, miss = {"hit": True, "response": "She has zq1."}, {"hit": False}
    assert not wrong("check_semantic_cache", thing, "She has zq1.", hit)
    assert not wrong("check_semantic_cache", thing, None, miss)
    assert wrong("check_semantic_cache", thing, None, hit)
    assert wrong("check_semantic_cache", thing, "He has zq1.", hit)
    assert wrong("check_semantic_cache", thing, "She has zq1.", miss)
    recalled = {"related_conversation": [{"text": SAID}, {"text": "Something else."}]}
    assert not wrong("retrieve_memory", thing, SAID, recalled)
    assert wrong("retrieve_memory", thing, None, recalled)
    assert wrong("retrieve_memory", thing, SAID, {"related_conversation": []})
    results = {"results": [{"text": "Piece zq1."}]}
    assert not wrong("hybrid_search", thing, "# zq1\n\nPiece zq1.", results)
    assert wrong("hybrid_search", thing, "# zq1\n\nAnother piece zq1.", results)
    assert wrong("hybrid_search", thing, "# zq1\n\nPiece zq1.", {"results": []})


def test_contents_are_left_over_but_for_those_that_a_killed_server_never_began() -> None:
    ledger, findings = Ledger(), Findings()
    ledger.calls.append(Call(0, "a", "ingest_documents", {"text": "x", "name": "n"}, None, changes=True))
    workflows = [workflow(workflow_id="ingest_documents-1", argument='{"content":"held"}')]
    assert compare_contents(Records(contents=["other"]), ledger, workflows, findings) == 1
    assert findings.left == []
    assert compare_contents(Records(contents=["held", "one", "two"], staged=1), ledger, workflows, findings) == 1
    assert findings.left == ["1 staged vectors", "content held", "content two"]


def test_the_same_seed_draws_the_same_calls() -> None:
    def calls(seed: int, client: str) -> list[object]:
        chances = drawn(seed, client)
        return [draw(chances) for _ in range(50)]

    assert calls(3, "a") == calls(3, "a")
    assert calls(3, "a") != calls(3, "b")
    assert calls(3, "a") != calls(4, "a")
