"""The registry's knowledge as a pure state machine: `Directory.handle(request, peer, now) -> answer`.

- `directory`: the machine; `request`: what comes in; `refusal`: how it says no, and masking.
- `tables`, `records`: the state and its journal of changes; `rows`: from and to a store; `endpoints`,
  `documents`: values in it.
- `auth`: signatures, tokens, roles.
- `registration`, `names`, `routes`, `trust`, `networks`, `members`, `policies`, `keys`, `badges`: the handlers; each module
  ends with the table of the requests that it answers.
"""

from pilot_trio.proto.directory.directory import READ_ONLY as READ_ONLY
from pilot_trio.proto.directory.directory import TYPES as TYPES
from pilot_trio.proto.directory.directory import Counts as Counts
from pilot_trio.proto.directory.directory import Directory as Directory
from pilot_trio.proto.directory.directory import NetworkView as NetworkView
from pilot_trio.proto.directory.directory import NodeView as NodeView
from pilot_trio.proto.directory.refusal import Refused as Refused
from pilot_trio.proto.directory.request import PeerInfo as PeerInfo
from pilot_trio.proto.directory.rows import Change as Change
from pilot_trio.proto.directory.tables import DirectorySettings as DirectorySettings
