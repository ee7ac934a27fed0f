"""The real Tavily client against a server that answers as Tavily does."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from temporalio.exceptions import ApplicationError

from activities.models import WebResult, WebSearchParams
from activities.web import WebActivities
from tests.serving import served

KEY = "tvly-hunter2"
RESULT = {
    "title": "Oslo",
    "url": "https://example.com/oslo",
    "content": "Oslo is the capital of Norway.",
    "score": 0.9,
    "raw_content": None,
}


@dataclass
class Tavily:
    url: str = ""
    status: int = 200
    body: Any = field(default_factory=lambda: {"query": "q", "results": [RESULT]})
    asked: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    async def search(self, request: Request) -> Response:
        self.asked.append((await request.json(), request.headers["authorization"]))
        return JSONResponse(self.body, self.status)


@pytest.fixture
def tavily() -> Iterator[Tavily]:
    tavily = Tavily()
    app = Starlette(routes=[Route("/search", tavily.search, methods=["POST"])])
    with served(app) as tavily.url:
        yield tavily


async def test_a_search_reaches_tavily_whole(tavily: Tavily) -> None:
    params = WebSearchParams(
        query="capital of Norway",
        max_results=3,
        topic="news",
        search_depth="advanced",
        include_domains=["example.com"],
        exclude_domains=["example.org"],
        time_range="month",
    )

    found = await WebActivities(KEY, tavily.url).search_web(params)

    assert found.results == [
        WebResult(title="Oslo", url=RESULT["url"], content=RESULT["content"], score=0.9, published_date=None)
    ]
    [(body, authorization)] = tavily.asked
    assert authorization == f"Bearer {KEY}"
    assert body | params.model_dump() == body


async def test_optional_arguments_are_left_out(tavily: Tavily) -> None:
    tavily.body = {"results": []}

    assert (await WebActivities(KEY, tavily.url).search_web(WebSearchParams(query="x"))).results == []

    assert tavily.asked[0][0].keys() == {"query", "max_results", "topic", "search_depth"}


@pytest.mark.parametrize(
    ("status", "kind", "named"),
    [
        (400, "rejected", "Shorten"),
        (401, "access_denied", "TAVILY_API_KEY"),
        (403, "access_denied", "plan"),
        (404, "rejected", "404"),
        (429, "over_limit", "limit"),
        (432, "access_denied", "plan"),
        (433, "access_denied", "plan"),
        (500, "unavailable", "500"),
        (503, "unavailable", "503"),
    ],
)
async def test_each_error_is_classed(tavily: Tavily, status: int, kind: str, named: str) -> None:
    tavily.status, tavily.body = status, {"detail": {"error": f"no: {KEY}"}}

    with pytest.raises(ApplicationError) as raised:
        await WebActivities(KEY, tavily.url).search_web(WebSearchParams(query="x"))

    assert raised.value.type == kind
    assert raised.value.non_retryable == (kind != "unavailable")
    assert named in raised.value.message
    assert KEY not in raised.value.message
    assert raised.value.__cause__ is None
    assert len(tavily.asked) == 1


async def test_an_answer_that_is_no_answer_is_refused(tavily: Tavily) -> None:
    tavily.body = {"results": [{"title": "no address"}]}

    with pytest.raises(ApplicationError, match="can't be read") as raised:
        await WebActivities(KEY, tavily.url).search_web(WebSearchParams(query="x"))
    assert raised.value.non_retryable


async def test_nobody_there_is_retried() -> None:
    with pytest.raises(ApplicationError, match="TAVILY_BASE_URL") as raised:
        await WebActivities(KEY, "http://127.0.0.1:1").search_web(WebSearchParams(query="x"))
    assert not raised.value.non_retryable
