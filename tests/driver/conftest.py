from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from pilot_trio.driver import Driver, open_driver
from tests.driver.daemon import StandIn, open_daemon


@pytest.fixture
async def daemon() -> AsyncGenerator[StandIn]:
    async with open_daemon() as daemon:
        yield daemon


@pytest.fixture
async def node(daemon: StandIn) -> AsyncGenerator[Driver]:
    async with open_driver(connect_with=daemon.connect) as node:
        yield node
