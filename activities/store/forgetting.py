"""Which of the records found a request to forget means: one rule for both engines."""

from activities.models import ForgetMatch, ForgetQuery
from activities.store.words import matches, terms_of

LOOKED_AT = 100
"""How many of the nearest records of each kind are looked at."""


def meant(query: ForgetQuery, threshold: float, found: list[ForgetMatch]) -> list[ForgetMatch]:
    """Those of the records found, all of one kind, that `query` means: most similar first, at most its limit."""
    terms = terms_of(query.query)

    def similarity(one: ForgetMatch) -> float:
        return -1.0 if one.similarity is None else one.similarity

    kept = [one for one in found if similarity(one) >= threshold or (terms and matches(terms, one.text) == len(terms))]
    return sorted(kept, key=lambda one: (-similarity(one), one.id))[: query.limit]
