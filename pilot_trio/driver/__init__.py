"""The async driver: a program's side of the daemon's IPC socket. Knows nothing of the daemon but the protocol.

- `client`: `open_driver` and `Driver`.
- `links`: which connections there are and what goes over which; `link`: one connection: its reader, its writer,
  routing. The pairing of answers and requests is `proto.reply_matcher`.
- `stream`, `listener`, `datagrams`: Trio's interfaces on top.
- `commands`, `replies`: command groups and typed answers; `dial_errors`: texts to classes.
- `target`: how nodes and ports are named; `socket_path`: connecting.
"""

from __future__ import annotations

from pilot_trio.driver.client import Driver as Driver
from pilot_trio.driver.client import DriverStatistics as DriverStatistics
from pilot_trio.driver.client import open_driver as open_driver
from pilot_trio.driver.datagrams import DatagramChannel as DatagramChannel
from pilot_trio.driver.listener import PilotListener as PilotListener
from pilot_trio.driver.replies import Health as Health
from pilot_trio.driver.replies import Info as Info
from pilot_trio.driver.replies import PilotStreamStatistics as PilotStreamStatistics
from pilot_trio.driver.replies import Resolved as Resolved
from pilot_trio.driver.socket_path import find_socket as find_socket
from pilot_trio.driver.stream import PilotStream as PilotStream
