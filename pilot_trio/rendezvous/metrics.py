"""The rendezvous in Prometheus' text format: sums only, nothing about single nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pilot_trio.rendezvous.overview import Overview, Picture

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Collector):
    """Renders pictures of a rendezvous. Each has a registry of its own, so any number may live in one process."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return everything, in the text format."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are known when they are collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return everything that is measured here."""
        picture = self._overview.picture()
        yield from _directory_metrics(picture)
        yield from _registry_metrics(picture)
        yield from _beacon_metrics(picture)
        yield from _store_metrics(picture)


def _directory_metrics(picture: Picture) -> Iterable[Metric]:
    counts = picture.statistics.directory
    yield GaugeMetricFamily("pilot_uptime_seconds", "Time since the start", picture.statistics.uptime)
    yield GaugeMetricFamily("pilot_nodes", "Nodes registered and not reaped", counts.nodes)
    yield GaugeMetricFamily("pilot_nodes_online", "Nodes heard of in the last three minutes", picture.online)
    yield GaugeMetricFamily("pilot_public_nodes", "Nodes whose endpoint anybody may learn", counts.public_nodes)
    yield GaugeMetricFamily("pilot_node_ids", "Node ids ever given out", counts.node_ids)
    yield GaugeMetricFamily("pilot_networks", "Networks other than the backbone", counts.networks)
    yield GaugeMetricFamily("pilot_trust_pairs", "Pairs of nodes that trust each other", counts.trust_pairs)
    yield GaugeMetricFamily("pilot_handshakes_waiting", "Handshake requests not polled yet", counts.waiting_requests)


def _registry_metrics(picture: Picture) -> Iterable[Metric]:
    registry = picture.statistics.registry
    yield GaugeMetricFamily("pilot_registry_connections", "Open connections", registry.connections)
    yield GaugeMetricFamily("pilot_registry_held_bytes", "Half requests and unsent answers", registry.held_bytes)
    yield CounterMetricFamily("pilot_registry_accepted", "Connections accepted", registry.accepted)
    yield CounterMetricFamily("pilot_registry_refused", "Connections closed at once, too many", registry.refused)
    yield CounterMetricFamily("pilot_registry_starved", "Accepts that lacked a file descriptor", registry.starved)
    yield _labelled("pilot_registry_requests", "Requests", "type", registry.requests)
    yield _labelled(
        "pilot_registry_endings", "Ends of connections", "reason", {key.value: n for key, n in registry.endings.items()}
    )


def _beacon_metrics(picture: Picture) -> Iterable[Metric]:
    beacon = picture.statistics.beacon
    if beacon is None:
        return
    yield GaugeMetricFamily("pilot_beacon_endpoints", "Nodes whose endpoint is known", beacon.endpoints)
    yield CounterMetricFamily("pilot_beacon_discovers", "Discovers answered", beacon.discovers)
    yield CounterMetricFamily("pilot_beacon_moves_refused", "Endpoint changes that came too soon", beacon.moves_refused)
    yield CounterMetricFamily("pilot_beacon_strangers", "Discovers of unregistered nodes", beacon.strangers)
    yield CounterMetricFamily("pilot_beacon_notifies", "Notifies sent", beacon.notifies)
    yield CounterMetricFamily("pilot_beacon_relayed_frames", "Frames passed on", beacon.relayed)
    yield CounterMetricFamily("pilot_beacon_relayed_bytes", "Bytes of frames passed on", beacon.relayed_bytes)
    yield CounterMetricFamily("pilot_beacon_punches", "Pairs of nodes told to punch", beacon.punches)
    yield _labelled(
        "pilot_beacon_drops", "Datagrams dropped", "reason", {key.value: n for key, n in beacon.drops.items()}
    )


def _store_metrics(picture: Picture) -> Iterable[Metric]:
    store = picture.statistics.store
    yield CounterMetricFamily("pilot_store_transactions", "Transactions written", store.transactions)
    yield CounterMetricFamily("pilot_store_failures", "Transactions that failed", store.failures)
    yield GaugeMetricFamily("pilot_store_unwritten_rows", "Rows waiting for the disk", store.unwritten)


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family
