"""Building and checking the indexes of the Atlas store. No driver here: `AtlasDatabase` is handed in."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from activities.errors import failure
from activities.models import EmbeddingModel, ExternalCollection
from activities.store.atlas_indexes import (
    REGULAR_INDEXES,
    Index,
    IndexReport,
    Quantization,
    compare_external,
    compare_regular,
    compare_search,
    model_of,
    search_indexes,
    vector_field,
)

if TYPE_CHECKING:
    from activities.store.atlas import AtlasDatabase

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
MENDINGS = 20
"""How often an index is changed before that is given up."""
BUILD_SECONDS = 300.0
"""How long one command that makes an index may take."""

_ALREADY_THERE = frozenset({48, 68})
"""Codes of NamespaceExists and IndexAlreadyExists: another process was faster, and what it made is looked at next."""


async def reports_of(
    db: "AtlasDatabase", model: EmbeddingModel, quantization: Quantization, external: Iterable[ExternalCollection]
) -> list[IndexReport]:
    """How each index stands that the store needs for `model`, and those of the declared collections.

    Vector indexes hold the vectors of the model that fills the collections too, and of one that they move to.
    """
    models = {vector_field(model): model}
    for recorded in await db.recorded():
        for one in (recorded, recorded.get("next")):
            if one:
                models.setdefault(vector_field(model_of(one)), model_of(one))
    wanted = [*REGULAR_INDEXES, *search_indexes(models.values(), quantization)]
    collections = list(dict.fromkeys(index.collection for index in wanted))
    there = await asyncio.gather(
        *(regular_indexes(db.collection(name)) for name in collections),
        *(searched_indexes(db.collection(name)) for name in collections),
    )
    regular = dict(zip(collections, there[: len(collections)], strict=True))
    searched = dict(zip(collections, there[len(collections) :], strict=True))
    reports = [
        compare_regular(index, regular[index.collection].get(index.name))
        if index.kind == "regular"
        else compare_search(index, searched[index.collection].get(index.name))
        for index in wanted
    ]
    for one in external:
        try:
            theirs = await searched_indexes(db.elsewhere(one.name))
        except Exception as error:
            # What isn't ours never keeps the store from being used; a connection that broke would show elsewhere too.
            if (code := getattr(error, "code", None)) is None:
                raise
            unread = Index(one.name, one.vector_index, "vectorSearch", {})
            reports.append(IndexReport(unread, "failed", f"its indexes can't be read (code {code})", queryable=False))
            continue
        reports.append(compare_external(one.name, one.vector_index, "vectorSearch", theirs))
        reports.append(compare_external(one.name, one.text_index, "search", theirs))
    return reports


def own_of(db: "AtlasDatabase", reports: Iterable[IndexReport]) -> list[IndexReport]:
    """The reports on the store's own indexes: those of declared collections are somebody else's affair."""
    return [report for report in reports if report.index.collection in db.names]


async def regular_indexes(collection: Any) -> dict[str, dict[str, Any]]:
    """What `listIndexes` says of a collection, by name."""
    return {one["name"]: dict(one) async for one in collection.list_indexes()}


async def searched_indexes(collection: Any) -> dict[str, dict[str, Any]]:
    """What `$listSearchIndexes` says of a collection, by name; nothing where the collection doesn't exist yet."""
    try:
        return {one["name"]: one async for one in collection.aggregate([{"$listSearchIndexes": {}}])}
    except Exception as error:
        if getattr(error, "code", None) == 26:
            return {}
        raise


async def build(db: "AtlasDatabase", look: Callable[[], Any], on_change: Callable[[list[IndexReport]], None]) -> None:
    """Create what is missing, mend what differs, and wait until every index of the store's own can be queried.

    Args:
        db: The database.
        look: Gives the reports.
        on_change: Told the reports again and again until all are ready.

    Raises:
        ApplicationError: `not_configured` where Atlas can't build one.
    """
    async with db.explained():
        await db.create_collections()
    mended: Counter[tuple[str, str]] = Counter()
    while True:
        async with db.explained():
            reports: list[IndexReport] = await look()
        on_change(reports)
        own = own_of(db, reports)
        if all(report.state == "ready" for report in own):
            return
        for report in own:
            await mend(db, report)
            if report.state == "differs":
                mended[report.index.collection, report.index.name] += 1
                if mended[report.index.collection, report.index.name] > MENDINGS:
                    raise failure(
                        "not_configured",
                        f"the index {report.index.name} of {db.names[report.index.collection]} still differs after it "
                        f"was changed: {report.detail}. Drop it in Atlas, and run `durable-context index` again.",
                    )
        await asyncio.sleep(POLL_SECONDS)


async def mend(db: "AtlasDatabase", report: IndexReport) -> None:
    """Create or change one index; a search index is built in the background.

    Raises:
        ApplicationError: `not_configured` where Atlas has failed to build it.
    """
    index, collection = report.index, db.collection(report.index.collection)
    if report.state == "failed":
        raise failure(
            "not_configured",
            f"Atlas can't build the index {index.name} of {db.names[index.collection]}: "
            f"{report.detail or 'no reason given'}. Drop it in Atlas, and run `durable-context index` again.",
        )
    if report.state not in ("missing", "differs"):
        return
    async with db.explained(BUILD_SECONDS):
        if report.state == "differs" and index.kind == "regular":
            await collection.drop_index(index.name)
        elif report.state == "differs" and report.other_kind:
            await collection.drop_search_index(index.name)
            return
        elif report.state == "differs":
            await collection.update_search_index(index.name, index.definition)
            return
        command: dict[str, Any] = {"createIndexes": collection.name, "indexes": [index.definition]}
        if index.kind != "regular":
            definition = {"name": index.name, "type": index.kind, "definition": index.definition}
            command = {"createSearchIndexes": collection.name, "indexes": [definition]}
        try:
            await db.command(command)
        except Exception as error:
            if getattr(error, "code", None) not in _ALREADY_THERE:
                raise


def _is_searched(path: str, model: EmbeddingModel) -> bool:
    """Whether searches with `model` need a field of a vector index: its vectors, and all that is filtered by."""
    return path == vector_field(model) or not path.startswith("embedding_")


def refuse(db: "AtlasDatabase", reports: Sequence[IndexReport], model: EmbeddingModel) -> None:
    """Log what differs, and refuse to work without an index that `model` needs.

    Raises:
        ApplicationError: `not_configured` where one is missing, naming the command that makes it; `unavailable` while
            one is being built.
    """
    own = own_of(db, reports)
    lacking = {
        db.names[report.index.collection]
        for report in own
        if report.state == "missing" or any(_is_searched(path, model) for path in report.lacking)
    }
    if lacking:
        raise failure(
            "not_configured",
            f"indexes are missing in the Atlas database {db.name} ({', '.join(sorted(lacking))}): run "
            "`durable-context index` once.",
        )
    for report in own:
        if report.state == "failed" and not report.queryable:
            raise failure(
                "not_configured",
                f"Atlas has failed to build the index {report.index.name} of {db.names[report.index.collection]} "
                f"({report.detail}): drop it in Atlas, and run `durable-context index`.",
            )
        if not report.queryable:
            raise failure(
                "unavailable",
                f"Atlas is still building the index {report.index.name} of {db.names[report.index.collection]} "
                f"({report.detail}); `durable-context index` shows how far it is",
            )
    for report in reports:
        if report.state != "ready":
            name = db.names.get(report.index.collection, report.index.collection)
            what = f"{report.state} {report.detail}".strip()
            logger.warning("index %s of %s: %s; see `durable-context index --check`", report.index.name, name, what)
