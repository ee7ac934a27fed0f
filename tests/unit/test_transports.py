"""What is done to lines before they are parsed."""

import json

import pytest

from mcp_server.transports import mend_surrogates


@pytest.mark.parametrize(
    "text",
    ["plain", "😀", "\\ud83d", "\\\\ud83d", "a\\", "é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_is_well_formed_stays(text: str, ascii_only: bool) -> None:
    line = json.dumps(text, ensure_ascii=ascii_only)
    assert mend_surrogates(line) == line
    assert json.loads(mend_surrogates(line)) == text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r'"\ud83d"', "\ufffd"),
        (r'"\uDE00!"', "\ufffd!"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd😀"),
        (r'"\\\ud83d"', "\\\ufffd"),
        (r'"\ud83d\u0041"', "\ufffdA"),
    ],
)
def test_lone_surrogates_are_replaced(line: str, text: str) -> None:
    assert json.loads(mend_surrogates(line)) == text
