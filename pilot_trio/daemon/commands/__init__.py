"""The daemon's commands: one module per subject, one plain function per command (`daemon/dispatch.py`).

- `data`: ports, streams, datagrams
- `state`: info and health
- `naming`: hostname, visibility, tags, key, webhook, registration
- `trust`: handshakes
- `networks`: membership, invitations
- `managed`: policies and member tags
- `signing`: badges, recovery, signed requests
- `parts`: what they need of the node
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pilot_trio.daemon.commands import data, managed, naming, networks, signing, state, trust
from pilot_trio.daemon.commands.parts import NodeParts as NodeParts
from pilot_trio.daemon.dispatch import CommandTable


def build_table(node: NodeParts, *, wall_time: Callable[[], float] = time.time) -> CommandTable:
    """Return every command that the daemon knows; a code that is not in it is answered `unknown command`.

    Args:
      node: the parts that carry the commands out.
      wall_time: Unix seconds, for signed requests.
    """
    table: CommandTable = signing.routes(node, wall_time=wall_time)
    for module in (data, state, naming, trust, networks, managed):
        table.update(module.routes(node))
    return table
