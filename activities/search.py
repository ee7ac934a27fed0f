"""Hybrid search over a user's documents."""

from temporalio import activity

from activities.models import DocumentQuery, HybridSearchResult
from activities.store.base import OpenedStore


class SearchActivities:
    def __init__(self, store: OpenedStore) -> None:
        self._store = store

    @activity.defn
    async def search_documents(self, query: DocumentQuery) -> HybridSearchResult:
        """Rank one collection's chunks by keywords and meaning, as `Store.search_documents` defines it."""
        store = await self._store()
        return HybridSearchResult(results=await store.search_documents(query))
