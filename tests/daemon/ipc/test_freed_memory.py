"""What clients leave behind goes back to the system, once for all that leave at about the same time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pilot_trio.daemon import freed_memory
from pilot_trio.daemon.freed_memory import RETURN_DELAY, return_freed_memory

from .conftest import Bench


async def test_clients_that_leave_together_share_one_return(
    bench: Bench, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[float] = []
    monkeypatch.setattr(freed_memory, "return_freed_memory", lambda: returned.append(trio.current_time()))
    clients = [await bench.connect() for _ in range(5)]
    start = trio.current_time()
    await trio.sleep(10)
    for client in clients[:4]:
        client.close()
    await trio.sleep(10)
    clients[4].close()
    await trio.sleep(10)
    assert returned == pytest.approx([start + 10 + RETURN_DELAY, start + 20 + RETURN_DELAY])


@pytest.mark.parametrize("library", ["as it is", "without"])
def test_returning_does_no_harm_where_it_cannot(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "without":
        monkeypatch.setattr(freed_memory, "_trim", None)
    return_freed_memory()
