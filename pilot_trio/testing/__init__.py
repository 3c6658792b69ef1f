"""What you need to test programs that use this package, without a network and without waiting.

- `open_node`, `open_node_pair`: whole nodes with a connected driver; `open_stream_pair`: both ends of a stream.
- `fixtures`: the same as pytest-trio fixtures; a plugin that you name yourself.
- `MemoryNetwork`: TCP and UDP in memory, with faults; give it to `serve` and a whole node runs under virtual time.
- `SimulatedNetwork`: hosts and bad paths between them, with NAT and partitions, from a seed; `run_simulation` repeats a run.
- `MemoryTransportListener`: the IPC socket in memory; `memory_stream_pair`, `memory_transport_pair`: its pieces.

The modules: `nodes`, `node_network`, `fixtures`; `memory_network`; `simulated_network` with `links`, `nat` and `determinism`; `memory_transport`
on `pipe`.

Everything here works with `trio.testing.MockClock(autojump_threshold=0)`, except where a real socket is asked for.
"""

from __future__ import annotations

from pilot_trio.testing.determinism import deterministic_scheduling as deterministic_scheduling
from pilot_trio.testing.determinism import run_simulation as run_simulation
from pilot_trio.testing.links import Link as Link
from pilot_trio.testing.links import LinkStatistics as LinkStatistics
from pilot_trio.testing.memory_network import MemoryNetwork as MemoryNetwork
from pilot_trio.testing.memory_network import MemoryNetworkStatistics as MemoryNetworkStatistics
from pilot_trio.testing.memory_transport import MemoryTransportListener as MemoryTransportListener
from pilot_trio.testing.nat import Nat as Nat
from pilot_trio.testing.nat import NatType as NatType
from pilot_trio.testing.node_network import NodeNetwork as NodeNetwork
from pilot_trio.testing.node_network import open_node_network as open_node_network
from pilot_trio.testing.nodes import RunningNode as RunningNode
from pilot_trio.testing.nodes import StreamPair as StreamPair
from pilot_trio.testing.nodes import open_node as open_node
from pilot_trio.testing.nodes import open_node_pair as open_node_pair
from pilot_trio.testing.nodes import open_stream_pair as open_stream_pair
from pilot_trio.testing.pipe import MemoryStream as MemoryStream
from pilot_trio.testing.pipe import MemoryTransport as MemoryTransport
from pilot_trio.testing.pipe import memory_stream_pair as memory_stream_pair
from pilot_trio.testing.pipe import memory_transport_pair as memory_transport_pair
from pilot_trio.testing.simulated_network import NetworkStatistics as NetworkStatistics
from pilot_trio.testing.simulated_network import Passage as Passage
from pilot_trio.testing.simulated_network import SimulatedHost as SimulatedHost
from pilot_trio.testing.simulated_network import SimulatedNetwork as SimulatedNetwork
