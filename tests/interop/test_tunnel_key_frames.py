"""Key frames that a peer repeats, as operators of either daemon see them: log lines and events, counted."""

from __future__ import annotations

import attrs
import pytest
import trio

from pilot_trio.crypto.agreement import KeyPair
from pilot_trio.crypto.identity import Identity
from pilot_trio.net.endpoint import Endpoint
from pilot_trio.net.network import DatagramSocket, SystemNetwork
from pilot_trio.proto.tunnel.settings import DEBOUNCE, STALE_AFTER
from pilot_trio.wire import tunnel
from pilot_trio.wire.registry import register_text
from tests.interop.events import open_webhook
from tests.interop.overlay import Kind, MakeHome, Overlay, OverlayNode, open_overlay

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ANY = Endpoint("127.0.0.1", 0)
PATIENCE = 30.0  # seconds for what takes milliseconds on an idle machine
ESTABLISHED, SAME = 'msg="encrypted tunnel established"', 'msg="auth key exchange: same-session keepalive"'


@attrs.define(eq=False)
class Peer:
    """A registered node that says key frames and nothing else."""

    sock: DatagramSocket
    frame: bytes
    to: Endpoint

    @classmethod
    async def register(cls, overlay: Overlay, node: OverlayNode) -> Peer:
        identity, keypair = Identity.from_seed(bytes(31) + b"\x07"), KeyPair.generate()
        sock = await SystemNetwork().open_udp(ANY)
        at, key = str(sock.endpoint), identity.public_key_b64
        answer = await overlay.rendezvous.ask(
            type="register",
            listen_addr=at,
            public_key=key,
            signature=identity.sign_text(register_text(at, key)),
            owner="a@example.org",
            version="1.18.0",
        )
        own = answer["node_id"]
        signature = identity.sign(tunnel.signed_bytes(own, keypair.public))
        frame = tunnel.KeyExchange(own, keypair.public, identity.public_key, signature)
        (line,) = (line for line in node.log if 'msg="tunnel listening"' in line)
        to = Endpoint("127.0.0.1", int(line.rpartition(":")[2].strip('"')))
        return cls(sock, tunnel.encode_key_exchange(frame), to)

    def say(self) -> None:
        assert self.sock.send_nowait(self.frame, self.to)

    async def hear_key_frame(self, within: float) -> bool:
        """Wait for the node's key frame; False if none came."""
        with trio.move_on_after(within):
            while (await self.sock.receive())[0][:4] != tunnel.PILA:
                pass
            return True
        return False


def count(node: OverlayNode, text: str) -> int:
    return sum(text in line for line in node.log)


@pytest.mark.parametrize("kind", ["ours", "go"])
async def test_a_repeated_key_frame_is_an_event_each_time_and_one_info_line_in_all(
    make_go_home: MakeHome, kind: Kind
) -> None:
    async with open_webhook() as hook, open_overlay(make_go_home) as overlay:
        node = await overlay.start(kind, "-webhook", hook.url)
        peer = await Peer.register(overlay, node)
        peer.say()
        assert await peer.hear_key_frame(PATIENCE)
        for _ in range(2):  # inside the debounce: as if they had not been
            peer.say()
        await trio.sleep(2 * DEBOUNCE)
        for _ in range(3):
            peer.say()
            await trio.sleep(2 * DEBOUNCE)
        await trio.sleep(2)  # posts are in order, but nothing says which is the last
        assert len(hook.named("tunnel.established")) == 4
        assert (count(node, ESTABLISHED), count(node, SAME)) == (1, 3)
        peer.sock.close()


async def test_a_peer_that_may_have_lost_our_frame_is_answered_once_a_second(make_go_home: MakeHome) -> None:
    """The original means to, and never does (`spec/tunnel.md` §7.4)."""
    async with open_overlay(make_go_home) as overlay:
        node = await overlay.start("ours")
        peer = await Peer.register(overlay, node)
        peer.say()
        assert await peer.hear_key_frame(PATIENCE)
        peer.say()
        assert not await peer.hear_key_frame(1)
        await trio.sleep(STALE_AFTER)
        peer.say()
        assert await peer.hear_key_frame(PATIENCE)
        peer.say()
        assert not await peer.hear_key_frame(0.5)
        assert count(node, ESTABLISHED) == 1
        peer.sock.close()
