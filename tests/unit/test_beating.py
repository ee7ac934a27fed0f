"""Activities that work on a source: each failure is retried for as long as that may help."""

from dataclasses import replace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.beating import SOURCE_ATTEMPTS, beating_for_source
from activities.errors import failure
from tests.contract.records import fails


async def fail(error: Exception, attempt: int) -> None:
    async def work() -> None:
        async with beating_for_source():
            raise error

    environment = ActivityEnvironment()
    environment.info = replace(environment.info, attempt=attempt)
    await environment.run(work)


async def test_a_source_that_fails_for_no_known_reason_is_given_up() -> None:
    for attempt in (1, SOURCE_ATTEMPTS - 1):
        with pytest.raises(ZeroDivisionError):
            await fail(ZeroDivisionError(), attempt)
    for attempt in (SOURCE_ATTEMPTS, SOURCE_ATTEMPTS + 7):
        with fails("rejected", "ZeroDivisionError"):
            await fail(ZeroDivisionError("with a secret"), attempt)


async def test_what_is_known_to_pass_is_waited_for() -> None:
    with fails("unavailable", "away"):
        await fail(failure("unavailable", "It is away."), 100)
