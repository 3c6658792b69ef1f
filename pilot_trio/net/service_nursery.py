"""A nursery for services whose users must end first.

Cancelling an ordinary nursery reaches all of its tasks at once: whoever still has something to say at the end finds that
what it would say it through is gone. Here the body is cancelled as usual, and the services only once the body is done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class ServiceNursery:
    """Starts services; made by `open_service_nursery`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: list[trio.CancelScope] = []

    async def start(self, service: Callable[..., Awaitable[object]], *args: object) -> Any:
        """Start a service and return what it reports. Until it reports it can be cancelled like anything else."""
        scope = trio.CancelScope()
        value = await self._nursery.start(partial(_run_in, scope, service, *args))
        scope.shield = True
        self._scopes.append(scope)
        return value

    def stop(self) -> None:
        """Cancel every service."""
        for scope in self._scopes:
            scope.cancel()


@asynccontextmanager
async def open_service_nursery() -> AsyncGenerator[ServiceNursery]:
    """Run the body with services that are cancelled when it has ended, however it ends.

    A service that crashes cancels the body. What the services still do once they are cancelled must have a deadline.
    """
    async with trio.open_nursery() as nursery:
        services = ServiceNursery(nursery)
        try:
            yield services
        finally:
            services.stop()


async def _run_in(
    scope: trio.CancelScope,
    service: Callable[..., Awaitable[object]],
    *args: object,
    task_status: trio.TaskStatus[Any],
) -> None:
    with scope:
        await service(*args, task_status=task_status)
