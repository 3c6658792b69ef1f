"""Managed networks: which policy a network carries, and who its members are (`spec/services.md` §7.3).

Rules are not executed; traffic passes as if there were none, and the log says so when a document is applied.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from pilot_trio.address import NetworkId
from pilot_trio.daemon.interfaces import Registry
from pilot_trio.daemon.state import NodeState
from pilot_trio.errors import CommandError, DecodeError, RegistryError
from pilot_trio.proto.policy import PolicyDocument, parse_policy
from pilot_trio.wire.times import rfc3339

RECONCILE_INTERVAL: Final = 5.0  # seconds between looks at a network's members; protocol, `spec/services.md` §7.3
CYCLE_TIMEOUT: Final = 5.0  # seconds for a cycle that a client asked for; protocol, `spec/ipc.md` §5.7
RUNNERS_MAX: Final = 256  # networks with a policy; each costs a request every `RECONCILE_INTERVAL`

_log = logging.getLogger("pilot_trio.managed")


@attrs.define(eq=False)
class Runner:
    """One network with a policy."""

    network: NetworkId
    document: PolicyDocument
    joined_at: float  # Unix seconds
    cycle_num: int = 0
    peers: int = 0  # other members, as far as known


class ManagedNetworks:
    """The runners of all managed networks.

    Args:
      state: who we are.
      registry: knows the members.
      admin_token: sent along when asking for members; empty for none.
      wall_time: Unix seconds.
    """

    def __init__(
        self, state: NodeState, registry: Registry, admin_token: str = "", wall_time: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._registry = registry
        self._admin_token = admin_token
        self._wall_time = wall_time
        self._runners: dict[NetworkId, Runner] = {}
        self._first = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the members of every managed network until cancelled; idle while there is none."""
        task_status.started()
        while True:
            await self._first.wait()
            await trio.sleep(RECONCILE_INTERVAL)
            for runner in list(self._runners.values()):
                try:
                    await self._reconcile(runner)
                except RegistryError as exc:
                    kv = {"network_id": runner.network, "error": str(exc)}
                    _log.debug("managed network not reconciled", extra={"kv": kv})
            if not self._runners:
                self._first = trio.Event()

    def apply(self, network: int, document: bytes) -> None:
        """Take up a policy document, or replace the one that the network has.

        Raises:
          DecodeError: it is no policy document.
          CommandError: there are `RUNNERS_MAX` managed networks already.
        """
        policy = parse_policy(document)
        runner = self._runners.get(NetworkId(network))
        if runner is not None:
            runner.document = policy
        elif len(self._runners) >= RUNNERS_MAX:
            raise CommandError(f"{RUNNERS_MAX} networks have a policy already")
        else:
            self._runners[NetworkId(network)] = Runner(NetworkId(network), policy, self._wall_time())
            self._first.set()
            # Once per network: who has read it knows what to expect of the next document.
            kv = {"network_id": network, "rules": len(policy.rules)}
            _log.warning("network policy is not enforced", extra={"kv": kv})

    def apply_joined(self, network: int, reply: dict[str, Any]) -> None:
        """Take up the policy in the answer to a join, a text or an object; one that is none is logged and left."""
        policy = reply.get("expr_policy")
        if not policy:
            return
        text = policy if isinstance(policy, str) else json.dumps(policy, ensure_ascii=False, separators=(",", ":"))
        try:
            self.apply(network, text.encode("utf-8", "replace"))
        except (CommandError, DecodeError) as exc:
            _log.warning("network policy unusable", extra={"kv": {"network_id": network, "error": str(exc)}})

    async def sync(self, directory: list[dict[str, Any]]) -> None:
        """Take up the policies of the networks that this node is a member of, as the registry lists them.

        Networks that were left are forgotten; one whose policy cannot be had now keeps what it has.
        """
        for left in self._runners.keys() - set(self._state.networks):
            self.drop(left)
        for row in directory:
            network = row.get("id")
            if not isinstance(network, int) or network not in self._state.networks or network in self._runners:
                continue
            if row.get("has_expr_policy") is True:
                try:
                    self.apply_joined(network, await self._registry.call("get_expr_policy", network_id=network))
                except RegistryError as exc:
                    kv = {"network_id": network, "error": str(exc)}
                    _log.warning("network policy not loaded", extra={"kv": kv})

    def drop(self, network: int) -> None:
        """Forget a network that was left."""
        self._runners.pop(NetworkId(network), None)

    def policy(self, network: int) -> str | None:
        """Return the text of a network's policy, None if it has none."""
        runner = self._runners.get(NetworkId(network))
        return None if runner is None else runner.document.text

    def status(self, network: int) -> dict[str, Any]:
        """Return what a client sees of a network (0: any one); raise `CommandError` if it is not managed."""
        runner = self._find(network)
        return {
            "network_id": runner.network,
            "engine": "policy",
            "peers": runner.peers,
            "cycle_num": runner.cycle_num,
            "joined_at": rfc3339(runner.joined_at),
        }

    async def cycle(self, network: int) -> dict[str, Any]:
        """Run a cycle of a network (0: any one) now; without rules that act, it only looks at the members.

        Raises:
          CommandError: the network is not managed, or the registry took longer than `CYCLE_TIMEOUT`.
          RegistryError: the registry refused.
        """
        runner = self._find(network)
        with trio.move_on_after(CYCLE_TIMEOUT):
            await self._reconcile(runner)
            runner.cycle_num += 1
            acted = dict.fromkeys(("evicted", "filled", "filled_trust", "pruned", "pruned_trust"), 0)
            return {"network_id": runner.network, "cycle_num": runner.cycle_num, "peers": runner.peers, **acted}
        raise CommandError(f"force cycle timed out after {CYCLE_TIMEOUT:g}s")

    async def reconcile(self, network: int) -> int:
        """Look at a network's members now and return how many others there are.

        Raises:
          CommandError: the network has no policy.
          RegistryError: the registry refused.
        """
        runner = self._find(network, missing="no active policy runner for network")
        await self._reconcile(runner)
        return runner.peers

    def _find(self, network: int, missing: str = "no active managed networks") -> Runner:
        runner = next(iter(self._runners.values()), None) if network == 0 else self._runners.get(NetworkId(network))
        if runner is None:
            raise CommandError(missing)
        return runner

    async def _reconcile(self, runner: Runner) -> None:
        token: dict[str, Any] = {"admin_token": self._admin_token} if self._admin_token else {}
        answer = await self._registry.call("list_nodes", network_id=runner.network, **token)
        nodes = answer.get("nodes")
        members = [row for row in nodes if isinstance(row, dict)] if isinstance(nodes, list) else []
        runner.peers = sum(row.get("node_id") != self._state.node_id for row in members)
