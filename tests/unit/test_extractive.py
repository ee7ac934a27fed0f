"""The extractive summariser: it picks what is central, in order, and adds nothing."""

import pytest

from mcp_server.local.extractive import MAX_SENTENCES, sentences, summarise, tokens

ARTICLE = """The harbour of Porto Velho closes for ships in November. Ships that wait for the harbour anchor in the bay.
A cat was seen on the quay. The harbour master says that ships may enter the harbour again in March.
Fishing boats are not ships for the harbour rules, so they go in and out. The weather was fine.
Harbour fees for ships rise by 4.5 percent when the harbour opens. Tea is served at four."""


def texts(text: str) -> list[str]:
    return [sentence.text for sentence in sentences(text)]


@pytest.mark.parametrize("text", ["", " \n\t\n", "…", "?! --- 。", "human:", "human: \nai: …"])
def test_nothing_to_say(text: str) -> None:
    assert sentences(text) == []
    assert summarise(text, 100).text == ""


def test_one_sentence_is_its_own_summary() -> None:
    assert summarise("  Only this,\n as it   stands. ", 100).text == "Only this, as it stands."


def test_what_is_central_is_picked_in_order() -> None:
    summary = summarise(ARTICLE, 500, max_sentences=3)
    picked = texts(summary.text)
    original = texts(ARTICLE)
    assert len(picked) == 3
    assert picked == [sentence for sentence in original if sentence in picked]
    assert not {"A cat was seen on the quay.", "The weather was fine.", "Tea is served at four."} & set(picked)
    assert not summary.clipped


@pytest.mark.parametrize("limit", [1, 2, 7, 15, 40, 80])
def test_length_is_kept_and_nothing_is_invented(limit: int) -> None:
    summary = summarise(ARTICLE, limit)
    assert 0 < len(tokens(summary.text)) <= limit
    if summary.clipped:
        assert summary.text in ARTICLE
    else:
        assert set(texts(summary.text)) <= set(texts(ARTICLE))


def test_default_number_of_sentences() -> None:
    many = " ".join(f"Sentence {number} tells of topic {number} at some length." for number in range(400))
    assert len(texts(summarise(many, 10_000).text)) == MAX_SENTENCES


def test_a_repeated_sentence_is_picked_once() -> None:
    text = "The train to Lisbon leaves at nine.\n" * 5 + "Bring your passport."
    assert summarise(text, 100).text == "The train to Lisbon leaves at nine.\nBring your passport."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith met J. R. Jones at 3.14 p.m. today, e.g. for tea. They left.", 2),
        ('"Really?" he asked. Yes.', 2),
        ("i like tea. it is warm. i drink it daily", 3),
        ("Wait... what? OK!", 2),
        ("A line that was\nwrapped by an editor.", 1),
        ("- one item\n- another item", 2),
        ("Heading\n\nthen a paragraph", 2),
        ("今日は晴れです。明日は「雨です。」と言った！本当？", 3),
        ("「はい。」「いいえ。」", 2),
        ("¿Qué tal? ¡Muy bien! Ça va.", 3),
        ("यह पहला वाक्य है। यह दूसरा है।", 2),
        ("هل هذا سؤال؟ نعم.", 2),
    ],
)
def test_sentences(text: str, expected: int) -> None:
    assert len(texts(text)) == expected


def test_speakers_stay_with_what_they_said() -> None:
    talk = "2024-05-01 human: We fly to Lisbon in May. I prefer aisle seats.\n2024-05-01 ai: Noted: aisle seats.\nok"
    assert [(item.speaker, item.text) for item in sentences(talk)] == [
        ("2024-05-01 human: ", "We fly to Lisbon in May."),
        ("2024-05-01 human: ", "I prefer aisle seats."),
        ("2024-05-01 ai: ", "Noted: aisle seats."),
        ("", "ok"),
    ]
    assert summarise(talk, 100).text.startswith("2024-05-01 human: We fly to Lisbon in May. I prefer aisle seats.")
    seats = summarise("human: Hm. The aisle seat in row nine is mine for the whole flight.", 100, max_sentences=1)
    assert seats.text == "human: The aisle seat in row nine is mine for the whole flight."


def test_speaker_labels_are_no_content() -> None:
    assert sentences("human: ")[:1] == []
    assert texts("用户：我喜欢茶。很暖。") == ["我喜欢茶。", "很暖。"]


def test_ideographs_count_one_by_one() -> None:
    assert tokens("Tea 茶です") == ["tea", "茶", "で", "す"]
    assert summarise("茶" * 50, 10).text == "茶" * 10


def test_emoji_and_control_characters_pass() -> None:
    assert summarise("Party at eight 🎉! Bring\0cake.", 100).text == "Party at eight 🎉! Bring\0cake."
