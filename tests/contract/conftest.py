"""Fixtures of the contract tests: each engine's store, empty."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activities.store.base import Store
from tests.contract.records import ENGINES, MODEL, Engine


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return Engine(request.param, str(tmp_path / "data" / "store.db"))


@pytest.fixture
async def store(engine: Engine) -> AsyncIterator[Store]:
    store = engine.store()
    await store.open(MODEL)
    yield store
    await store.close()
