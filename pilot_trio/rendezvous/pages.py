"""HTTP for people and for monitoring (`spec/registry.md` §9.4): read-only, and never a private node's endpoint.

    /            a page for people                    /metrics     Prometheus, sums only
    /healthz     is it alive                          /api/stats   the same sums as JSON
                                                      /api/nodes   the nodes as JSON, for this machine only

Strangers see public nodes. Who asks from this machine sees that private ones exist, with their names; where they are is
shown to nobody: that is what private means.
"""

from __future__ import annotations

import ipaddress
import logging
from functools import partial
from typing import Any, Final, cast

import hypercorn.trio
import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.typing import ASGIFramework
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pilot_trio.address import BACKBONE, Address
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.proto.directory import NodeView
from pilot_trio.rendezvous.metrics import CONTENT_TYPE, Metrics
from pilot_trio.rendezvous.overview import Overview, Picture
from pilot_trio.rendezvous.page_html import CONTENT_SECURITY_POLICY, render_page

KEEP_ALIVE_TIMEOUT: Final = 5.0  # seconds that an idle HTTP connection stays open; pages are one request each
READ_TIMEOUT: Final = 10  # seconds without a byte of a request; a page needs one round trip

_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


async def serve_pages(
    at: Endpoint, overview: Overview, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; `nursery.start` returns the URL. Raises `OSError` if `at` cannot be listened on."""
    listener, *others = await trio.open_tcp_listeners(at.port, host=at.host or "0.0.0.0")  # noqa: S104
    for other in others:
        await other.aclose()
    endpoint = Endpoint(*listener.socket.getsockname()[:2])
    config = ServerConfig()
    config.bind = [f"fd://{listener.socket.detach()}"]  # bound here: the server would leak its socket if that failed
    config.keep_alive_timeout = KEEP_ALIVE_TIMEOUT
    config.read_timeout = READ_TIMEOUT
    config.errorlog = logging.getLogger("pilot_trio.http")
    config.errorlog.setLevel(logging.WARNING)  # its line about the start repeats ours, and advises to press keys
    config.include_server_header = False
    app = cast("ASGIFramework", make_app(overview))  # the two describe ASGI in different types
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(hypercorn.trio.serve, app, config, mode="asgi"))
        task_status.started(f"http://{endpoint}/")


def make_app(overview: Overview) -> Starlette:
    """Return the ASGI application."""
    metrics = Metrics(overview)

    async def page(request: Request) -> Response:
        picture = overview.picture()
        return HTMLResponse(render_page(picture, visible_nodes(picture, request)), headers=_HEADERS)

    async def healthz(_: Request) -> Response:
        picture = overview.picture()
        uptime = int(picture.statistics.uptime)
        healthy = picture.statistics.store.unwritten == 0 or picture.statistics.store.failures == 0
        body = {"status": "ok" if healthy else "degraded", "version": "1.0", "uptime_seconds": uptime}
        body["nodes_online"] = picture.online
        return JSONResponse(body, 200 if healthy else 503, headers=_HEADERS)

    async def stats(_: Request) -> Response:
        # Any site may read it, as with the reference: there is nothing about anybody in it.
        return JSONResponse(_stats(overview.picture()), headers=_HEADERS | {"Access-Control-Allow-Origin": "*"})

    async def nodes(request: Request) -> Response:
        if not is_local(request):
            return JSONResponse({"error": "for this machine only"}, 403, headers=_HEADERS)
        picture = overview.picture()
        return JSONResponse({"nodes": [_node(node, picture) for node in picture.nodes]}, headers=_HEADERS)

    async def prometheus(_: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE, headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", healthz),
            Route("/metrics", prometheus),
            Route("/api/stats", stats),
            Route("/api/nodes", nodes),
        ]
    )


def is_local(request: Request) -> bool:
    """Say whether a request comes from this machine, and from no web page of somebody else.

    A proxy on this machine speaks for others, and says so. A site whose name was made to point at this machine makes the
    visitor's browser connect from here, but with the site's name in the Host header.
    """
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    return _is_loopback(request.client.host) and _is_loopback(request.url.hostname or "")


def visible_nodes(picture: Picture, request: Request) -> list[NodeView]:
    """Return the nodes that a visitor may see listed."""
    local = is_local(request)
    return [node for node in picture.nodes if node.public or local]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _stats(picture: Picture) -> dict[str, Any]:
    counts = picture.statistics.directory
    return {
        "total_nodes": counts.node_ids,
        "active_nodes": counts.nodes,
        "online_nodes": picture.online,
        "total_trust_links": counts.trust_pairs,
        "total_requests": sum(picture.statistics.registry.requests.values()),
        "total_networks": counts.networks,
        "uptime_secs": int(picture.statistics.uptime),
        "versions": dict(picture.versions),
    }


def _node(node: NodeView, picture: Picture) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node_id": node.node_id,
        "address": str(Address(BACKBONE, node.node_id)),
        "hostname": node.hostname,
        "public": node.public,
        "online": picture.is_online(node),
        "last_seen_unix": int(node.last_seen),
        "version": node.version,
        "relay_only": node.relay_only,
        "tags": list(node.tags),
        "networks": list(node.networks),
    }
    if node.public and not node.relay_only:
        row["endpoint"] = node.endpoint
    return row
