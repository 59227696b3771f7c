"""Fetch by names whose answers change, in a network of one's own; print what came of it as JSON.

    unshare -rnm sh -c 'mount --bind RESOLV_CONF /etc/resolv.conf && exec PYTHON -m …'

The names are asked of our own name server on 127.0.0.1:53, by the system's own resolver.
"""

import fcntl
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from arkloop.shared.security.checked_http import CheckedBackend
from arkloop.worker.tools import ToolFailed
from tests.waiting import eventually
from tests.worker.tools.fetching import Server, fetch, page, redirect

PORT = 8080
#: Of each name the answers in turn, the last for ever.
NAMES = {
    "allowed.test": [["127.0.0.2"]],
    "loopback.test": [["127.0.0.1"]],
    "six.test": [["::1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "metadata.test": [["169.254.169.254"]],
    "two.test": [["127.0.0.2", "127.0.0.1"]],
    "mixed.test": [["127.0.0.2", "::1"]],
    "rebinding.test": [["127.0.0.2"], ["127.0.0.1"]],
}
HOP = {"hop.test": [["127.0.0.2"], ["169.254.169.254"]]}
#: Each name and path, in the order of the fetches; `/again` redirects to `/`.
FETCHED = [(name, "/") for name in (*NAMES, "rebinding.test", "nowhere.test")]
FETCHED.append(("hop.test", "/again"))
CANARIES = {"127.0.0.1": "loopback.test", "::1": "six.test", "169.254.169.254": "metadata.test"}

_A, _AAAA, _NAME_ERROR = 1, 28, 3


class NameServer:
    """Answers over UDP (RFC 1035), to be forgotten at once; `asked` counts by name."""

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self.asked: Counter[str] = Counter()
        self._names = names
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(4096)
            self._socket.sendto(self._answer(question), asker)

    def _answer(self, packet: bytes) -> bytes:
        labels, at = [], 12
        while length := packet[at]:
            labels.append(packet[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name, kind = ".".join(labels), int.from_bytes(packet[at + 1 : at + 3])
        # A resolver asks for both kinds at once, for A first: together they are one turn.
        self.asked[name] += kind == _A
        turns = self._names.get(name, [])
        addresses = [ip_address(a) for a in turns[: max(self.asked[name], 1)][-1]] if turns else []
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(address.packed)) + address.packed
            for address in addresses
            if kind == (_A if address.version == 4 else _AAAA)
        ]
        flags = 0x8180 | (0 if turns else _NAME_ERROR)
        head = packet[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        return head + packet[12 : at + 5] + b"".join(records)


def main() -> None:
    bring_up("lo", None)
    bring_up("lo:1", "169.254.169.254")
    names = NameServer(NAMES | HOP)
    allowed = Server("127.0.0.2", {"/": page("hello"), "/again": redirect("/")}, port=PORT)
    canaries = [Server(host, port=PORT) for host in CANARIES]
    results = [(name, _fetched(f"http://{name}:{PORT}{path}")) for name, path in FETCHED]
    # Each is reached by its name where nothing is checked; and what came before would be counted.
    for name in CANARIES.values():
        CheckedBackend(None).connect_tcp(name, PORT, timeout=5).close()
    eventually(lambda: all(canary.connections for canary in canaries))
    print(
        json.dumps(
            {
                "results": results,
                "asked": names.asked,
                "allowed": allowed.connections,
                "canaries": [canary.connections for canary in canaries],
            }
        )
    )


def _fetched(url: str) -> str:
    try:
        return fetch(url)
    except ToolFailed as failed:
        return f"failed: {failed}"


def bring_up(interface: str, address: str | None) -> None:
    """Configure the interface as `ip` does, which not every machine has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if address is not None:
            packed = struct.pack("=HH4s8x", socket.AF_INET, 0, ip_address(address).packed)
            fcntl.ioctl(control, 0x8916, struct.pack("16s16s", interface.encode(), packed))
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", interface.encode(), 1))


if __name__ == "__main__":
    main()
