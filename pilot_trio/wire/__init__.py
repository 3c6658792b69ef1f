"""Wire formats: bytes to values and back, one module per format. Pure: no Trio, no I/O, no clock.

- `framing`: length-prefixed frames, used by the IPC socket and by the registry.
- `ipc`, `ipc_requests`: the local protocol between clients and the daemon (`spec/ipc.md`); `info_rows`: rows of its Info.
- `canonical_json`: the JSON dialect that the protocol's peers write (`spec/ipc.md` §5.10).
- `registry`, `registry_binary`: control-plane messages and the strings that nodes sign (`spec/registry.md`).
- `beacon`: datagrams between a node and its beacon (`spec/tunnel.md` §13).
- `packet`, `sack`: what travels inside tunnels (`spec/transport.md`); `tunnel`: the frames around it (`spec/tunnel.md`).
- `handshake`, `dataexchange`, `filestream`, `eventstream`: what the built-in services say (`spec/services.md`), on
  `service_ports`.
- `hostname_file`: a state file that the original reads, too; `json_text`, `times`: JSON and points in time as text.

Decoders raise `DecodeError` and nothing else, whatever the bytes.
"""
