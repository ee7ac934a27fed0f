"""Collections in Atlas that others fill, as `hybrid_search` sees them: their own fields, indexes and users."""

from datetime import datetime
from math import isfinite
from typing import Any

from activities.errors import failure
from activities.models import DocumentQuery, ExternalCollection, SearchHit
from activities.store.atlas_search import Document, Found, Query, Target
from activities.store.filters import Node, fields_of


def query_of(external: ExternalCollection, query: DocumentQuery, vector: Any, node: Node | None) -> Query:
    """A search of a declared collection.

    Args:
        external: The declaration.
        query: What is asked for.
        vector: The query's vector, as the driver sends it; None for one of zeros.
        node: The filter.

    Raises:
        ApplicationError: `rejected` for a filter by a field that isn't declared for it.
    """
    if node is not None and (unknown := sorted(fields_of(node) - set(external.filter_fields))):
        allowed = ", ".join(external.filter_fields) or "none"
        raise failure(
            "rejected", f"filter: field '{unknown[0]}' of {external.name} can't be filtered by; allowed: {allowed}"
        )
    target = Target(
        collection=external.name.partition(".")[2],
        text_field=external.text_field,
        vector_field=external.vector_field,
        text_index=external.text_index,
        vector_index=external.vector_index,
        share={external.user_field: query.user_id} if external.user_field else {},
        ordered=False,
    )
    return Query(target, query.query, vector, query.limit, query.weight, filter=node)


def hits_of(external: ExternalCollection, ranked: list[tuple[Any, float]], found: Found) -> list[SearchHit]:
    """Somebody else's records as hits: what isn't the text, the vector or the user is metadata."""
    hidden = {external.text_field, external.vector_field, external.user_field, "_id"}
    return [
        SearchHit(
            id=str(record_id),
            text=str(_at(found.documents[record_id], external.text_field) or ""),
            score=score,
            vector_score=found.cosines.get(record_id),
            text_score=found.keywords.get(record_id),
            metadata={
                name: _jsonable(value) for name, value in found.documents[record_id].items() if name not in hidden
            },
        )
        for record_id, score in ranked
    ]


def _jsonable(value: Any) -> Any:
    """A value of somebody else's record as JSON."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return None if isinstance(value, bytes) else str(value)


def _at(record: Document, path: str) -> Any:
    """What is at a dotted path; None where nothing is."""
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
