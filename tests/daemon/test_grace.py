"""Work that is finished although the caller is cancelled."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pilot_trio.daemon.grace import GRACE, complete
from pilot_trio.errors import RegistryError


async def test_the_result_is_returned(autojump_clock: trio.testing.MockClock) -> None:
    async def answer() -> int:
        await trio.sleep(5)
        return 3

    started_at = trio.current_time()
    assert await complete(answer) == 3
    assert trio.current_time() - started_at == pytest.approx(5)


@pytest.mark.parametrize(("left", "finished"), [(GRACE - 0.01, True), (GRACE + 0.01, False)])
async def test_after_a_cancellation_the_work_has_its_grace_and_no_more(
    autojump_clock: trio.testing.MockClock, left: float, finished: bool
) -> None:
    done: list[str] = []

    async def work() -> None:
        await trio.sleep(2 + left)
        done.append("worked")

    started_at = trio.current_time()
    with trio.move_on_after(2) as scope:
        await complete(work)
        done.append("returned")
    assert done == (["worked"] if finished else [])
    assert scope.cancelled_caught
    assert trio.current_time() - started_at == pytest.approx(2 + min(left, GRACE))


async def test_an_error_comes_out_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> None:
        await trio.sleep(1)
        raise RegistryError("no")

    with pytest.raises(RegistryError, match="registry: no"):
        await complete(work)
