"""A nursery behind a context manager that users write, such as `open_driver`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

import trio


@contextlib.asynccontextmanager
async def open_background() -> AsyncGenerator[trio.Nursery]:
    """Give a nursery whose tasks are cancelled when the block ends, however it ends.

    An exception of the block comes out as it is: that there is a nursery at all is not its author's affair. What the tasks
    raise comes in a group, as from any nursery; they should raise nothing but defects.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as exc:
            error = exc  # raised again outside of the nursery, which would wrap it
        finally:
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error
