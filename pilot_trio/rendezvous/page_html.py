"""The page for people: one HTML document without scripts, made from a picture. Everything shown is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from pilot_trio.address import BACKBONE, Address
from pilot_trio.proto.directory import NetworkView, NodeView
from pilot_trio.rendezvous.overview import Picture

ROWS_MAX: Final = 500  # rows of a table; a page is for eyes, `/api/nodes` has all

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: light-dark(#666, #aaa); --good: light-dark(#1c7c45, #4cc38a);
  --bad: light-dark(#b3261e, #ff8a7a); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
.soft, th { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0; }
dl div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
dt { font-size: .8rem; color: var(--soft); } dd { margin: 0; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 500; font-size: .8rem; } code { font-size: .9em; }
.tag { border: 1px solid var(--line); border-radius: 1rem; padding: 0 .5rem; font-size: .8rem; margin-right: .25rem; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"


def render_page(picture: Picture, nodes: Sequence[NodeView]) -> str:
    """Return the document; `nodes` are those that the visitor may see."""
    hidden = len(picture.nodes) - len(nodes)
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="refresh" content="30"><title>Pilot rendezvous</title>',
            f"<style>{_STYLE}</style></head><body>",
            _header(picture),
            _figures(picture),
            "<h2>Nodes</h2>",
            _table(
                ("", "Address", "Name", "Endpoint", "Version", "Last seen", "Tags"),
                [_node_cells(node, picture) for node in nodes[:ROWS_MAX]],
            ),
            _remark(_count(len(nodes) - ROWS_MAX, "more node") if len(nodes) > ROWS_MAX else ""),
            _remark(f"{_count(hidden, 'private node')} not shown" if hidden else ""),
            "<h2>Networks</h2>",
            _table(
                ("Id", "Name", "Joining", "Members"),
                [_network_cells(network) for network in picture.networks[:ROWS_MAX]],
            ),
            _remark(
                _count(len(picture.networks) - ROWS_MAX, "more network") if len(picture.networks) > ROWS_MAX else ""
            ),
            "</body></html>",
        )
    )


def _header(picture: Picture) -> str:
    store = picture.statistics.store
    if store.failures and store.unwritten:
        health = '<span class="bad">● the database cannot be written</span>'
    elif not store.persistent:
        health = '<span class="good">● healthy</span> <span class="soft">nothing is kept across restarts</span>'
    else:
        health = '<span class="good">● healthy</span>'
    uptime = escape(_duration(picture.statistics.uptime))
    return f'<header><h1>Pilot rendezvous</h1>{health}<span class="soft">up {uptime}</span></header>'


def _figures(picture: Picture) -> str:
    statistics = picture.statistics
    counts = statistics.directory
    figures = {
        "Nodes online": f"{picture.online} of {counts.nodes}",
        "Public nodes": str(counts.public_nodes),
        "Networks": str(counts.networks),
        "Trust pairs": str(counts.trust_pairs),
        "Connections": str(statistics.registry.connections),
        "Requests": str(sum(statistics.registry.requests.values())),
    }
    if statistics.beacon is not None:
        figures["Beacon sees"] = str(statistics.beacon.endpoints)
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()) + "</dl>"


def _node_cells(node: NodeView, picture: Picture) -> tuple[str, ...]:
    online = picture.is_online(node)
    dot = '<span class="good" title="online">●</span>' if online else '<span class="soft" title="silent">○</span>'
    if not node.public:
        endpoint = '<span class="soft">private</span>'
    elif node.relay_only:
        endpoint = '<span class="soft">by relay</span>'
    else:
        endpoint = f"<code>{escape(node.endpoint)}</code>"
    return (
        dot,
        f"<code>{escape(str(Address(BACKBONE, node.node_id)))}</code>",
        escape(node.hostname),
        endpoint,
        escape(node.version),
        escape(f"{_duration(max(0.0, picture.now - node.last_seen))} ago"),
        "".join(f'<span class="tag">{escape(tag)}</span>' for tag in node.tags),
    )


def _network_cells(network: NetworkView) -> tuple[str, ...]:
    return (str(network.network_id), escape(network.name), escape(network.join_rule), str(network.members))


def _table(heads: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    if not rows:
        return _remark("none yet")
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _remark(text: str) -> str:
    return f'<p class="soft">{text}</p>' if text else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    for size, unit, part in ((86_400, "d", 3600), (3600, "h", 60), (60, "min", 1)):
        if whole >= size:
            smaller = {3600: "h", 60: "min", 1: "s"}[part]
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"
