"""Web search by Tavily."""

from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.errors import failure
from activities.models import WebResult, WebSearchParams, WebSearchResult

TIMEOUT_SECONDS = 30.0


class WebActivities:
    """
    Args:
        api_key: Tavily's key; without one every search says which setting is missing.
        base_url: Address of Tavily's API.
    """

    def __init__(self, api_key: str | None, base_url: str) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._client: Any = None

    @activity.defn
    async def search_web(self, params: WebSearchParams) -> WebSearchResult:
        """Ask Tavily.

        Raises:
            ApplicationError: `not_configured` without a key, `access_denied` for a bad one, `over_limit` where the
                plan's limit is reached, `rejected` for a query that Tavily refuses, `unavailable` (retried) otherwise.
        """
        if self._api_key is None:
            raise failure(
                "not_configured",
                "search_web needs a Tavily key, and TAVILY_API_KEY isn't set. Set it in the server's environment; "
                "the other tools work without it.",
            )
        if self._client is None:
            # Imported here because it takes as long as all the rest of a start.
            from tavily import AsyncTavilyClient

            self._client = AsyncTavilyClient(api_key=self._api_key, api_base_url=self._base_url)
        try:
            answer = await self._client.search(
                query=params.query,
                max_results=params.max_results,
                topic=params.topic,
                search_depth=params.search_depth,
                include_domains=params.include_domains or None,
                exclude_domains=params.exclude_domains or None,
                time_range=params.time_range,
                timeout=TIMEOUT_SECONDS,
            )
            return WebSearchResult(
                results=[
                    WebResult(
                        title=item.get("title") or "",
                        url=item["url"],
                        content=item.get("content") or "",
                        score=item.get("score") or 0.0,
                        published_date=item.get("published_date"),
                    )
                    for item in answer.get("results", [])
                ]
            )
        except Exception as error:
            raise _classed(error) from None


def _classed(error: Exception) -> ApplicationError:
    import httpx
    from tavily import errors

    if isinstance(error, errors.InvalidAPIKeyError):
        return failure("access_denied", "Tavily refused the key. Check TAVILY_API_KEY.")
    if isinstance(error, errors.UsageLimitExceededError):
        return failure("over_limit", "Tavily's usage limit for this key is reached. Wait, or raise the plan's limit.")
    if isinstance(error, errors.ForbiddenError):
        return failure("access_denied", "Tavily forbids this search for this key. Check the key's plan at Tavily.")
    if isinstance(error, errors.BadRequestError):
        return failure("rejected", "Tavily can't take this search. Shorten the query, or change the other arguments.")
    if isinstance(error, (errors.TimeoutError, httpx.TransportError)):
        return failure("unavailable", "Tavily can't be reached. Check the network, and TAVILY_BASE_URL if it is set.")
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
        return failure("rejected", f"Tavily answered with HTTP status {error.response.status_code}.")
    if isinstance(error, httpx.HTTPStatusError):
        return failure("unavailable", f"Tavily answered with HTTP status {error.response.status_code}.")
    return failure("rejected", f"Tavily's answer can't be read ({type(error).__name__}).")
