"""What embedded mode makes of a message, and what it takes from a language model's answer."""

import pytest

from activities.memory import SIGNIFICANCE, heuristic_assessment, heuristic_importance, read_assessment


@pytest.mark.parametrize(
    "text",
    [
        "I'm allergic to peanuts.",
        "My sister Ines lives in Lisbon.",
        "We decided to move the launch to 12 May.",
        "Please remember that the boiler is serviced every October.",
        "I prefer tea to coffee in the morning.",
    ],
)
def test_lasting_facts_are_significant(text: str) -> None:
    assert heuristic_importance(text) >= SIGNIFICANCE


@pytest.mark.parametrize("text", ["", "ok", "Thanks!", "What time is it?", "Good morning to you", "😀😀😀", "..."])
def test_small_talk_is_not(text: str) -> None:
    assert heuristic_importance(text) < SIGNIFICANCE


def test_importance_stays_in_bounds_and_grows_with_what_is_asked_to_be_kept() -> None:
    plain = "I live in Oslo with my wife and we plan to buy a boat in 2027 from Henrik in Bergen harbour this spring"
    assert 0 < heuristic_importance(plain) < heuristic_importance(f"Remember: {plain}.") <= 1


def test_a_summary_is_the_beginning_of_the_text() -> None:
    assert heuristic_assessment("I  like\n tea.").summary == "I like tea."
    long = "word " * 200
    summary = heuristic_assessment(long).summary
    assert len(summary) <= 300
    assert summary.endswith("word…")


@pytest.mark.parametrize(
    "answer",
    [
        '{"importance": 0.7, "summary": "Likes tea."}',
        'Here it is:\n```json\n{"importance": 0.7, "summary": "Likes tea."}\n```',
    ],
)
def test_an_assessment_is_read_from_an_answer(answer: str) -> None:
    assessment = read_assessment(answer)
    assert assessment is not None
    assert (assessment.importance, assessment.summary) == (0.7, "Likes tea.")


@pytest.mark.parametrize(
    "answer", ["", "I can't.", '{"importance": 7, "summary": "x"}', '{"importance": 0.5}', "{", "}{", "[1]"]
)
def test_an_answer_that_breaks_the_schema_is_refused(answer: str) -> None:
    assert read_assessment(answer) is None
