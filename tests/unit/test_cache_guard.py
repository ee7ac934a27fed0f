"""Which questions ask for the same, by their words."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.cache_guard import agree, normalised
from activities.numbers import mark_numbers

WORDS = (
    "what which how when who why is does can should the a of from to than not no without all before after my your "
    "capital buy purchase red Oslo Rome price train 2 two 3:15 2024-05-01 5% C++ && der ist où как 東 京 ?"
)
SENTENCES = st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join)
QUERIES = st.one_of(SENTENCES, st.text(max_size=60))


@given(QUERIES, QUERIES)
def test_the_order_of_two_questions_does_not_matter(one: str, other: str) -> None:
    assert agree(one, other) == agree(other, one)


@given(QUERIES, st.sampled_from([str.upper, str.lower, str.title]))
def test_case_and_white_space_change_nothing(query: str, change: Callable[[str], str]) -> None:
    assert agree(query, query)
    assert agree(query, f"  {query} ".replace(" ", "\t "))
    if normalised(change(query)) == normalised(query):
        assert agree(query, change(query))


@given(QUERIES, QUERIES)
def test_questions_with_other_numbers_never_agree(one: str, other: str) -> None:
    if sorted(mark_numbers(one)[0]) != sorted(mark_numbers(other)[0]) and normalised(one) != normalised(other):
        assert not agree(one, other)


@given(SENTENCES, st.integers(2, 10**6), st.integers(2, 10**6))
def test_a_number_decides(sentence: str, number: int, other: int) -> None:
    assert agree(f"{sentence} {number} apples", f"{sentence} {other} apples") == (number == other)


@given(SENTENCES, st.sampled_from(["Bergen", "Lisa", "yoghurt", "kubectl", "Ærø", "猫"]))
def test_a_word_that_only_one_of_them_has_parts_them(sentence: str, word: str) -> None:
    assert not agree(f"{sentence} lemon", f"{sentence} lemon {word}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where do I get a 20% rebate?", "Where can I get a rebate of twenty percent?"),
        ("Is there a ferry at 3:40 pm?", "is there a ferry at 15:40"),
        ("How old is the bridge?", "What's the bridge's age?"),
        ("Who drew this map?", "By whom was this map drawn?"),
        ("I want to freeze dumplings, how do I do that?", "How do I freeze dumplings?"),
        ("Could you tell me why leaves are green?", "What makes leaves green?"),
        ("Which colour is the flag?", "What color is the flag?"),
        ("When was the opera house built?", "In what year was the opera house built?"),
        ("Wo ist mein Koffer?", "Wo ist der Koffer"),
        ("¿Dónde está la estación?", "¿Dónde está mi estación?"),
        ("大阪の天気は？", "大阪の天気"),
    ],
)
def test_paraphrases_agree(one: str, other: str) -> None:
    assert agree(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many cups are in 2 pots?", "How many cups are in 3 pots?"),
        ("How warm is it at 7 am?", "How warm is it at 7 pm?"),
        ("Is it -5 degrees?", "Is it 5 degrees?"),
        ("What is 20% of 350?", "What is 350% of 20?"),
        ("Is the shop open?", "Is the shop not open?"),
        ("Can I pay with cash?", "Can I pay without cash?"),
        ("How do I turn the alarm on?", "How do I turn the alarm off?"),
        ("Who is Lena's doctor?", "Who is Nora's doctor?"),
        ("How do taxes work in the US?", "How do taxes work in the UK?"),
        ("How do I go from Graz to Linz?", "How do I go from Linz to Graz?"),
        ("Is tin heavier than lead?", "Is lead heavier than tin?"),
        ("Do foxes eat owls?", "Do owls eat foxes?"),
        ("What do I owe you?", "What do you owe me?"),
        ("When did they meet?", "Where did they meet?"),
        ("Can I leave early?", "Should I leave early?"),
        ("Who is the mayor?", "Who was the mayor?"),
        ("What's my address?", "What's your address?"),
        ("What time is the talk?", "What day is the talk?"),
        ("How do I soak beans?", "How do I soak beans overnight?"),
        ("How do I use C++?", "How do I use C#?"),
        ("What does && mean?", "What does || mean?"),
        ("What is this?", "Where is that?"),
        ("Wo ist mein Koffer?", "Wo ist mein Hut?"),
        ("¿Cuánto cuesta con IVA?", "¿Cuánto cuesta sin IVA?"),
        ("大阪の天気は？", "京都の天気は？"),
    ],
)
def test_near_misses_do_not(one: str, other: str) -> None:
    assert not agree(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("When is the last flight to Oslo?", "When is the last flight from Oslo?"),
        ("How do I import contacts to Gmail?", "How do I import contacts from Gmail?"),
        ("How do I migrate to Postgres?", "How do I migrate from Postgres?"),
        ("Which films by Hitchcock are there?", "Which films about Hitchcock are there?"),
    ],
)
def test_what_goes_there_does_not_come_from_there(one: str, other: str) -> None:
    assert not agree(one, other)
    assert not agree(other, one)
    assert agree(one, one.upper())


def test_very_long_questions_agree_with_themselves_alone() -> None:
    for long, other in (
        ("字" * 4000, "宇" * 4000),
        ("㍿" * 900, "号" * 900),
        ("how much is " * 300, "how many is " * 300),
    ):
        assert not agree(long, other)
        assert agree(long, long)
