"""Fixtures of the contract tests: each engine's store, empty."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pymongo
import pytest

from activities.store.base import Store
from tests.contract.records import ENGINES, MODEL, Engine


@pytest.fixture(scope="session")
def database(mongodb: pymongo.MongoClient[dict[str, object]]) -> Iterator[str]:
    """A database whose indexes are built once and whose records each test finds gone."""
    name = f"durable_context_test_{uuid.uuid4().hex[:8]}"
    yield name
    mongodb.drop_database(name)


@pytest.fixture
def atlas_target(mongodb_uri: str, mongodb: pymongo.MongoClient[dict[str, object]], database: str) -> str:
    """The database, emptied, and the connection string."""
    for name in mongodb[database].list_collection_names():
        mongodb[database][name].delete_many({})
    return f"{database} {mongodb_uri}"


@pytest.fixture
async def atlas_engine(atlas_target: str) -> Engine:
    engine = Engine("atlas", atlas_target)
    await engine.prepare(MODEL)
    return engine


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "sqlite":
        return Engine("sqlite", str(tmp_path / "data" / "store.db"))
    engine = Engine("atlas", request.getfixturevalue("atlas_target"))
    await engine.prepare(MODEL)
    return engine


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[Store]:
    store = engine.store()
    await store.open(MODEL)
    yield store
    await store.close()
