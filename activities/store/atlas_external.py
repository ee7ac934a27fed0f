"""Collections in Atlas that others fill, as `hybrid_search` sees them: their own fields, indexes and users."""

from datetime import datetime
from math import isfinite
from typing import Any

from temporalio.exceptions import ApplicationError

from activities.errors import failure
from activities.models import DocumentQuery, EmbeddingModel, ExternalCollection, SearchHit
from activities.store.atlas_search import Document, Found, Query, Target
from activities.store.filters import Group, Node, fields_of

MAX_BYTES = 1_000_000
"""The most that one search answers with."""
MAX_TEXT = 100_000
"""The most characters of one record's text."""
MAX_NUMBERS = 64
"""A longer list of numbers is a vector, which is of no use to anybody who reads it."""


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
    if node is not None:
        _check(node)
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


def misdeclared(external: ExternalCollection, model: EmbeddingModel) -> ApplicationError:
    """What it means that Atlas refuses to search a declared collection whose indexes are there."""
    filters = [*([external.user_field] if external.user_field else []), *external.filter_fields]
    also = f"; both must hold {', '.join(filters)} for filtering (as filter, and as token or number)" if filters else ""
    return failure(
        "not_configured",
        f"{external.name} can't be searched as EXTERNAL_COLLECTIONS declares it: its vector index "
        f"'{external.vector_index}' must hold '{external.vector_field}' with {model.dimensions} dimensions, and its "
        f"full-text index '{external.text_index}' the text '{external.text_field}'{also}.",
    )


def _check(node: Node) -> None:
    """Reject what MongoDB's query language knows and the search indexes don't."""
    if isinstance(node, Group):
        if not node.members:
            raise failure("rejected", "filter: an empty object can't be searched for in a declared collection")
        for member in node.members:
            _check(member)
        return
    kinds = {"number" if type(value) in (int, float) else type(value).__name__ for value in node.values}
    if not node.values:
        raise failure("rejected", f"filter: {node.operator} of '{node.field}' needs at least one value")
    if len(kinds) > 1:
        raise failure("rejected", f"filter: the values for '{node.field}' must be of one type")
    if "NoneType" in kinds:
        raise failure("rejected", f"filter: '{node.field}' can't be compared with null here; use $exists")
    if "bool" in kinds and node.operator in ("$gt", "$gte", "$lt", "$lte"):
        raise failure("rejected", f"filter: {node.operator} of '{node.field}' needs a number or a string")


def hits_of(external: ExternalCollection, ranked: list[tuple[Any, float]], found: Found) -> list[SearchHit]:
    """Somebody else's records as hits: what isn't the text, the vector or the user is metadata.

    As many of the best as MAX_BYTES take: they travel through a workflow's history, which is bounded.
    """
    hidden = {external.text_field, external.vector_field, external.user_field, "_id"}
    hits: list[SearchHit] = []
    left = MAX_BYTES
    for record_id, score in ranked:
        record = found.documents[record_id]
        hit = SearchHit(
            id=str(record["_id"]),
            text=str(_at(record, external.text_field) or "")[:MAX_TEXT],
            score=score,
            vector_score=found.cosines.get(record_id),
            text_score=found.keywords.get(record_id),
            metadata={name: _jsonable(value) for name, value in record.items() if name not in hidden},
        )
        left -= len(hit.model_dump_json())
        if left < 0:
            break
        hits.append(hit)
    return hits


def _jsonable(value: Any) -> Any:
    """A value of somebody else's record as JSON."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        if len(value) > MAX_NUMBERS and all(isinstance(item, int | float) for item in value):
            return None
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
