"""HTTP between agents: a Trio program that serves HTTP on an overlay port, and a client on another node.

The overlay's listeners are `trio.abc.Listener`, so `trio.serve_listeners` serves them like any others; h11 does the
HTTP. Run the server beside a daemon, `python http_over_overlay.py serve`, and ask it from any node that may reach it:
`python http_over_overlay.py get ADDRESS /hello`.
"""

import sys

import h11
import trio

import pilot_trio

PORT = 80


async def answer(stream: trio.abc.Stream) -> None:
    """Serve the requests of one connection, each with a greeting that names its path."""
    http = h11.Connection(h11.SERVER)
    async with stream:
        while (request := await next_event(http, stream)).__class__ is h11.Request:
            while not isinstance(await next_event(http, stream), h11.EndOfMessage):
                pass
            body = b"hello from the overlay, you asked for " + request.target + b"\n"
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
            for event in (h11.Response(status_code=200, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                await stream.send_all(http.send(event) or b"")
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()


async def get(node: pilot_trio.Driver, target: str, path: str) -> tuple[int, bytes]:
    """Ask an agent for a path; return status and body."""
    http = h11.Connection(h11.CLIENT)
    async with await node.dial(target, PORT) as stream:
        request = h11.Request(method="GET", target=path, headers=[("Host", target), ("Connection", "close")])
        await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        status, body = 0, b""
        while not isinstance(event := await next_event(http, stream), h11.EndOfMessage | h11.ConnectionClosed):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
    return status, body


async def next_event(http: h11.Connection, stream: trio.abc.Stream) -> h11.Event:
    """Return the next HTTP event, reading as much as it needs."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await stream.receive_some())
    assert not isinstance(event, type)
    return event


async def serve(node: pilot_trio.Driver) -> None:
    """Serve until cancelled."""
    await trio.serve_listeners(answer, [await node.listen(PORT)])


async def main(command: str, *args: str) -> None:
    """Connect to the daemon that `pilotctl` would use."""
    async with pilot_trio.open_driver() as node:
        if command == "serve":
            print("serving on", (await node.info()).address, "port", PORT)
            await serve(node)
        else:
            print(await get(node, *args))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
