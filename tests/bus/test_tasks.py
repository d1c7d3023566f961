"""Task groups that raise what failed, as it is."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from stratum_bus.errors import ConnectionLost, WrongSequence
from stratum_bus.tasks import own_cancellation, task_group


async def fail(error: Exception, cause: Exception | None = None) -> None:
    await anyio.lowlevel.checkpoint()
    raise error from cause


async def test_the_failure_of_a_task_arrives_with_its_cause() -> None:
    with pytest.raises(ConnectionLost) as raised:
        async with task_group() as tasks:
            tasks.start_soon(fail, ConnectionLost("lost"), OSError("reset"))
            await anyio.sleep_forever()
    assert repr(raised.value.__cause__) == "OSError('reset')"


async def test_the_failure_of_the_body_arrives_and_ends_the_tasks() -> None:
    with pytest.raises(ZeroDivisionError):
        async with task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise ZeroDivisionError


async def test_of_several_failures_the_first_arrives() -> None:
    with pytest.raises(WrongSequence):
        async with task_group() as tasks:
            tasks.start_soon(fail, WrongSequence("s", 0, 1))
            tasks.start_soon(fail, ConnectionLost("lost"))


async def test_nested_groups_are_opened_too() -> None:
    with pytest.raises(ConnectionLost):
        async with task_group(), task_group(), task_group() as tasks:
            tasks.start_soon(fail, ConnectionLost("lost"))


async def test_a_cancellation_of_something_awaited_is_no_cancellation_of_ours() -> None:
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    with pytest.raises(RuntimeError, match="that was awaited had been"), own_cancellation():
        await other


async def test_a_cancellation_of_ours_passes() -> None:
    with anyio.move_on_after(0) as scope, own_cancellation():
        await anyio.sleep_forever()
    assert scope.cancelled_caught
