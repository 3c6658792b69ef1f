"""Work that must not be cut in half by a cancellation, but must not hold it up for ever either."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

GRACE: Final = 1.0  # seconds that such work goes on after a cancellation; half of what a clean shutdown may take

T = TypeVar("T")


async def complete(run: Callable[[], Awaitable[T]], *, grace: float = GRACE) -> T:
    """Run to the end even if cancelled meanwhile, at most `grace` seconds longer; then the cancellation is raised.

    For exchanges whose answer must not be lost once the question is out: emptying a mailbox, replacing a key. What
    has to happen with the answer belongs into `run`: a caller that was cancelled meanwhile does not get the result.
    """
    shielded = trio.CancelScope(shield=True)
    results: list[T] = []
    failures: list[Exception] = []

    async def limit() -> None:
        try:
            await trio.sleep_forever()
        finally:
            shielded.deadline = min(shielded.deadline, trio.current_time() + grace)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit)
        with shielded:
            try:
                results.append(await run())
            except Exception as exc:
                failures.append(exc)  # raised below, outside the nursery, which would wrap it in a group
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return results[0]
