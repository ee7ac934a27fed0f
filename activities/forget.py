"""Forgetting: what a query means, what goes together, and the removal of every copy."""

import hashlib
import json

from temporalio import activity

from activities.beating import beating
from activities.embedding_models import is_e5
from activities.errors import failure
from activities.models import (
    ForgetIds,
    ForgetMatch,
    ForgetPreview,
    ForgetQuery,
    ForgetSelection,
    ForgetTarget,
    Forgotten,
)
from activities.store.base import OpenedStore
from activities.store.words import opening

# Cosines of different models have different ranges. E5 puts most of what has nothing to do with a query below 0.81, and
# most of what has above it, by a look at a few dozen pairs; the other is a first guess.
E5_LIKENESS = 0.82
OTHER_LIKENESS = 0.40

BATCH = 200
"""How many records are removed at once: whoever else writes waits for one batch, and transactions have their limits."""

SHOWN_CHARACTERS = 300
"""Length to which the text of a match is cut."""

MAX_SHOWN = 500
"""Most records that one query may forget: nobody reads more, and they have to fit a payload."""


def default_likeness(model_id: str) -> float:
    """Least cosine similarity of a record to a query that it is to be forgotten by, where the call doesn't say."""
    return E5_LIKENESS if is_e5(model_id) else OTHER_LIKENESS


def confirmation_of(user_id: str, matches: list[ForgetMatch]) -> str:
    """The token that stands for exactly these records of a user."""
    records = sorted((match.kind, match.id) for match in matches)
    return hashlib.sha256(json.dumps([user_id, records]).encode()).hexdigest()[:32]


class ForgetActivities:
    """
    Args:
        store: Where everything is that can be forgotten.
        threshold: Least cosine similarity of a match, unless a query brings its own.
    """

    def __init__(self, store: OpenedStore, threshold: float) -> None:
        self._store = store
        self._threshold = threshold

    @activity.defn
    async def preview_forgetting(self, query: ForgetQuery) -> ForgetPreview:
        """What a query means, most similar first, and then what goes with that.

        Raises:
            ApplicationError: `over_limit` where that are more than MAX_SHOWN records.
        """
        store = await self._store()
        threshold = self._threshold if query.threshold is None else query.threshold
        similarities = {one.id: one.similarity for one in await store.matching(query, threshold)}
        matches = await store.going_with(query.user_id, list(similarities))
        if len(matches) > MAX_SHOWN:
            raise failure(
                "over_limit", f"query: {len(matches)} records go with its matches, more than {MAX_SHOWN}: lower limit."
            )
        for one in matches:
            one.similarity = similarities.get(one.id)
            one.text = opening(one.text, SHOWN_CHARACTERS)
        matches.sort(key=lambda one: (one.similarity is None, -(one.similarity or 0), one.id))
        return ForgetPreview(matches=matches, confirmation=confirmation_of(query.user_id, matches) if matches else None)

    @activity.defn
    async def select_records(self, named: ForgetIds) -> ForgetSelection:
        """The records of these ids, and all that goes with them."""
        store = await self._store()
        selected = {one.id: None for one in await store.going_with(named.user_id, named.ids)}
        unknown = [one for one in dict.fromkeys(named.ids) if one not in selected]
        return ForgetSelection(ids=list(selected), unknown=unknown)

    @activity.defn
    async def forget_records(self, target: ForgetTarget) -> Forgotten:
        """Remove a batch at a time; run again, it goes on where it was.

        Counts go with the heartbeats, so that those of an attempt that was cut short are kept, but for its last second.
        """
        total = Forgotten()
        for counts in activity.info().heartbeat_details:
            total = Forgotten.model_validate(counts)
        ids = target.ids or []
        parts = [target.model_copy(update={"ids": ids[start : start + BATCH]}) for start in range(0, len(ids), BATCH)]
        async with beating([total]):
            store = await self._store()
            for part in parts or [target]:
                complete = False
                while not complete:
                    removed = await store.forget(part, BATCH)
                    total.messages += removed.messages
                    total.memories += removed.memories
                    total.cached_answers += removed.cached_answers
                    complete = removed.complete
                    activity.heartbeat(total)
        return total
