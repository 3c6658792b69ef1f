"""The rendezvous: where nodes register, find each other and learn their own addresses.

- `serve`: the whole of it; `settings`: what an operator chooses.
- `registry_server`, `connection`, `dialects`: TCP in, TLS (`tls`), frames, limits (`sources`), JSON and binary.
- `registrar`: directory and store as one; `store`, `database`: what survives. The directory itself is `proto.directory`, and pure.
- `beacon_server`, `relaying`, `punching`, `endpoint_table`, `endpoint_file`, `beacon_drops`: the UDP side.
- `overview`, `pages`, `page_html`, `metrics`: what people and monitoring see over HTTP; loaded only where that is on.
"""
