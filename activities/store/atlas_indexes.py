"""The indexes that the Atlas store needs, and how they differ from those that are there. No driver, only documents."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from activities.models import EMBEDDED, EmbeddingModel
from activities.store.times import STAGED_FOR
from activities.store.words import UNSPACED

Kind = Literal["vectorSearch", "search", "regular"]
State = Literal["ready", "building", "missing", "differs", "failed"]
"""`failed` also stands for an index that can't follow its collection any more."""
Quantization = Literal["none", "scalar"]

COLLECTIONS = tuple(EMBEDDED)
"""The store's own names of its collections of records."""

VECTOR_INDEX = "durable_context_vector"
TEXT_INDEX = "durable_context_text"

# Words as `words.py` has them: characters of unspaced scripts alone, other letters, digits and their marks together.
_WORDS = rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\p{{L}}\p{{N}}\p{{M}}])+"

ANALYZER: dict[str, Any] = {
    "name": "words",
    "charFilters": [],
    "tokenizer": {"type": "regexCaptureGroup", "pattern": _WORDS, "group": 0},
    # As FTS5's `porter unicode61 remove_diacritics 2` in the embedded store: case and accents folded, English stems.
    "tokenFilters": [
        {"type": "icuFolding"},
        # Lucene refuses a record with a token beyond 32,766 bytes; nobody looks for one that long.
        {"type": "length", "min": 1, "max": 255},
        {"type": "porterStemming"},
    ],
}


@dataclass(frozen=True)
class Index:
    """An index that must be there.

    Attributes:
        collection: Which of the store's collections it is on, by the store's own name for it.
        kind: Atlas Search indexes are built by another process than regular ones, and become queryable later.
        definition: What Atlas takes as `definition`; for a regular index, what `createIndexes` takes.
    """

    collection: str
    name: str
    kind: Kind
    definition: dict[str, Any]


@dataclass(frozen=True)
class IndexReport:
    """How an index that must be there stands."""

    index: Index
    state: State
    detail: str = ""
    lacking: frozenset[str] = frozenset()
    """Fields that a vector index should hold and doesn't."""
    other_kind: bool = False
    """Whether the name belongs to an index of another kind."""
    queryable: bool = True
    """Whether searches are answered."""
    current: bool = True
    """Whether they are answered by its latest definition."""


def vector_field(model: EmbeddingModel) -> str:
    """The field with a record's vector of `model`: each model has its own, so that vectors of two never mix."""
    return "embedding_" + hashlib.sha256(f"{model.model_id}\0{model.dimensions}".encode()).hexdigest()[:8]


def all_names(names: Mapping[str, str]) -> dict[str, str]:
    """What every collection of the store is called in the database, given the names of some that hold records.

    Besides those: `contexts` (each message together with the one before it), `sources` (which revision of each source
    is stored), `staged` (vectors of chunks that aren't stored yet), `content_files` and `content_chunks` (a bucket of
    GridFS), `summaries` (of conversations), `users` (how many memories each has formed, by which transactions find out
    about each other) and `models` (which embedding model fills the collections).
    """
    chosen = {name: name for name in COLLECTIONS} | dict(names)
    return chosen | {
        "contexts": f"{chosen['conversations']}_contexts",
        "sources": f"{chosen['documents']}_sources",
        "staged": f"{chosen['documents']}_staged",
        "content_files": f"{chosen['documents']}_contents.files",
        "content_chunks": f"{chosen['documents']}_contents.chunks",
        "summaries": f"{chosen['conversations']}_summaries",
        "users": f"{chosen['memory_nodes']}_users",
        "models": "durable_context_models",
    }


def model_of(recorded: Mapping[str, Any]) -> EmbeddingModel:
    """The model that the record of a collection names."""
    return EmbeddingModel(model_id=recorded["model_id"], dimensions=recorded["dimensions"])


def search_indexes(models: Iterable[EmbeddingModel], quantization: Quantization) -> list[Index]:
    """The vector and full-text search indexes, with a vector field for each of `models`."""
    chosen = list(models)
    filters = {
        "documents": ["user_id", "collection", "_id"],
        "conversations": ["user_id"],
        "contexts": ["user_id"],
        "memory_nodes": ["user_id"],
        "cache": ["user_id", "expires_at_us", "namespace", "model"],
    }
    vectors = [
        {"type": "vector", "path": vector_field(model), "numDimensions": model.dimensions, "similarity": "cosine"}
        | ({"quantization": quantization} if quantization != "none" else {})
        for model in chosen
    ]
    indexes = [
        Index(
            collection,
            VECTOR_INDEX,
            "vectorSearch",
            {"fields": [*vectors, *({"type": "filter", "path": path} for path in paths)]},
        )
        for collection, paths in filters.items()
    ]
    for collection in ("documents", "conversations", "contexts"):
        fields: dict[str, Any] = {path: {"type": "token"} for path in filters[collection]}
        # A total order of results needs `_id` in either.
        fields |= {"_id": {"type": "token"}, "text": {"type": "string", "analyzer": "words"}}
        definition = {"analyzers": [ANALYZER], "mappings": {"dynamic": False, "fields": fields}}
        indexes.append(Index(collection, TEXT_INDEX, "search", definition))
    return indexes


def _regular(collection: str, *keys: str, **options: Any) -> Index:
    fields = {key.removeprefix("-"): -1 if key.startswith("-") else 1 for key in keys}
    name = "_".join(key.replace("-", "").replace(".", "_") for key in keys)
    return Index(collection, name, "regular", {"key": fields, "name": name, **options})


REGULAR_INDEXES = [
    _regular("documents", "user_id", "collection", "source", "position"),
    _regular("documents", "user_id", "collection", "-changed_at"),
    _regular("sources", "user_id", "collection", "source", unique=True),
    _regular("staged", "staged_at", expireAfterSeconds=int(STAGED_FOR.total_seconds())),
    # With which summary covers a message, so that those that none does are found without reading the others.
    _regular("conversations", "user_id", "conversation_id", "timestamp_us", "stored_at", "summary_id"),
    _regular("conversations", "user_id", "-changed_at"),
    _regular("conversations", "user_id", "previous"),
    _regular("contexts", "user_id", "-changed_at"),
    _regular("memory_nodes", "user_id", "importance"),
    _regular("memory_nodes", "user_id", "-changed_at"),
    _regular("memory_nodes", "user_id", "content_hash"),
    _regular("memory_nodes", "user_id", "parent"),
    # Formed twice from one message, a memory would count it twice.
    _regular(
        "memory_nodes",
        "user_id",
        "sources.message_id",
        unique=True,
        # A parent has none of its own.
        partialFilterExpression={"sources.message_id": {"$exists": True}},
    ),
    _regular("cache", "entry_id", unique=True),
    _regular("cache", "user_id", "-changed_at"),
    _regular("cache", "expires_at", expireAfterSeconds=0),
    # Records that wait for a vector of the model that the store moves to: usually none.
    *(_regular(collection, "awaits", sparse=True) for collection in EMBEDDED),
]


def compare_regular(index: Index, there: dict[str, Any] | None) -> IndexReport:
    """How a regular index stands, given what `listIndexes` says about its name."""
    if there is None:
        return IndexReport(index, "missing")
    wanted = index.definition
    exact = ("key", "expireAfterSeconds", "partialFilterExpression")
    wrong = [option for option in exact if _plain(there.get(option)) != _plain(wanted.get(option))]
    wrong += [option for option in ("unique", "sparse") if bool(there.get(option)) != bool(wanted.get(option))]
    if wrong:
        return IndexReport(index, "differs", f"in {', '.join(wrong)}")
    return IndexReport(index, "ready")


def compare_search(index: Index, there: dict[str, Any] | None) -> IndexReport:
    """How a search index stands, given what `$listSearchIndexes` says about its name.

    What Atlas or an operator adds to a definition is no difference; a vector field that no model needs any more is.
    """
    if there is None:
        return IndexReport(index, "missing")
    status = str(there.get("status", ""))
    if status == "DOES_NOT_EXIST":
        return IndexReport(index, "missing")
    queryable = bool(there.get("queryable", False))
    current = queryable and status in ("READY", "")
    if status in ("FAILED", "STALE"):
        said = [str(host.get("mainIndex", host).get("message", "")) for host in there.get("statusDetail") or []]
        detail = " ".join(dict.fromkeys(part for part in (status, there.get("message"), *said) if part))
        return IndexReport(index, "failed", detail, queryable=queryable, current=False)
    if there.get("type", "search") != index.kind:
        return IndexReport(index, "differs", f"it is a {there.get('type', 'search')} index", other_kind=True)
    definition = there.get("latestDefinition") or {}
    if not index.definition:
        difference = ""
    elif index.kind == "vectorSearch":
        difference = _vector_difference(index.definition, definition)
    else:
        difference = _missing_in(definition, index.definition, "")
    if difference:
        held = {str(one.get("path")) for one in definition.get("fields", [])}
        wanted = {str(one["path"]) for one in index.definition.get("fields", [])}
        lacking = frozenset(wanted - held)
        return IndexReport(index, "differs", difference, lacking, queryable=queryable, current=current)
    if not queryable:
        return IndexReport(index, "building", status or "PENDING", queryable=False, current=False)
    if not current:
        return IndexReport(index, "building", "rebuilding; its old definition answers meanwhile", current=False)
    return IndexReport(index, "ready")


def compare_external(collection: str, name: str, kind: Kind, there: Mapping[str, dict[str, Any]]) -> IndexReport:
    """How a search index of somebody else's collection stands: whether it can be queried is all that is asked."""
    index = Index(collection, name, kind, {})
    return compare_search(index, there.get(name))


def _vector_difference(wanted: dict[str, Any], there: dict[str, Any]) -> str:
    """The first difference in the fields of a vector index; empty where there is none."""
    known = {str(one.get("path")): one for one in there.get("fields", [])}
    for one in wanted["fields"]:
        path = one["path"]
        if path not in known:
            return f"{one['type']} field '{path}' isn't in it"
        for key, value in ({"quantization": "none"} | one if one["type"] == "vector" else one).items():
            if (other := known[path].get(key, "none" if key == "quantization" else None)) != value:
                return f"{key} of '{path}' is {other}, not {value}"
    needed = {one["path"] for one in wanted["fields"]}
    for path, one in known.items():
        if one.get("type") == "vector" and path.startswith("embedding_") and path not in needed:
            return f"vector field '{path}' is of a model that isn't used any more"
    return ""


def _missing_in(there: Any, wanted: Any, path: str) -> str:
    """Where `wanted` isn't contained in `there`; empty where it is."""
    if isinstance(wanted, dict):
        if not isinstance(there, dict):
            return f"'{path or 'definition'}' isn't in it"
        for key, value in wanted.items():
            # An empty list is the same as none.
            if (key in there or value != []) and (found := _missing_in(there.get(key), value, f"{path}.{key}")):
                return found
        return ""
    if isinstance(wanted, list):
        if not isinstance(there, list) or len(there) < len(wanted):
            return f"'{path[1:]}' isn't in it"
        for one in wanted:
            if all(_missing_in(other, one, path) for other in there):
                return f"'{path[1:]}' differs"
        return ""
    return "" if _plain(there) == _plain(wanted) else f"'{path[1:]}' differs"


def _plain(value: Any) -> Any:
    """`value` as the driver would give it or as we write it: numbers by value, mappings with their order."""
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
