"""Everything that connects on behalf of an org, led by a name server, in a network of one's own.

    unshare -rnm sh -c 'mount --bind RESOLV_CONF /etc/resolv.conf && exec PYTHON -m …'

Each dials names that lead inside, one whose address changes, redirects, and the canaries by number.
Printed as JSON: how often each has reached the allowed server, and how many connections each canary
got.
"""

import json
import socket
import sys
from collections.abc import Callable
from contextlib import closing, suppress

from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.security import exchange
from arkloop.shared.security.checked_http import CheckedBackend
from arkloop.worker.mcp.client import McpClient
from tests.waiting import eventually
from tests.worker.mcp.sdk_server import server_at
from tests.worker.providers.test_abortable_http import of_org
from tests.worker.tools.fetching import HERE, Server, fetch
from tests.worker.tools.rebinding_names import CANARIES, NAMES, PORT, NameServer, bring_up

Dial = Callable[[str], object]
#: The canaries by number, in every spelling that some reader knows.
NUMBERS = ["127.0.0.1", "[::1]", "169.254.169.254", "[::ffff:127.0.0.1]", "127.1", "2130706433"]
NUMBERS += ["0x7f.1", "0177.0.0.1", "localhost", "LOCALHOST.", "127.0.0.1.", "a@127.0.0.1", "0"]
NUMBERS += ["①②⑦.0.0.1", "127。0。0。1", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"]
NUMBERS += ["[::ffff:a9fe:a9fe]", "127.0.0.2\\@127.0.0.1", "[::1%25lo]", "[0:0:0:0:0:0:0:1]"]
#: Redirects of the allowed server lead to the canaries as well.
PATHS = ["/", *(f"/to-{number}" for number in range(len(CANARIES)))]


class Allowed(Server):
    """Redirects to the canaries, and finds nothing else, whatever it is sent."""

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            path = connection.recv(65536).partition(b" ")[2].decode(errors="replace")
            number = path.startswith("/to-") and path[4:5]
            host = [*CANARIES][int(number)] if number else None
            to = f"Location: http://{host}:{PORT}/\r\n"
            status = f"302 Found\r\n{to}" if host else "404 Not Found\r\n"
            connection.sendall(f"HTTP/1.1 {status}Content-Length: 0\r\n\r\n".encode())


def main() -> None:
    """Send each sink to all hosts, then connect to each canary once without a check."""
    bring_up("lo", None)
    bring_up("lo:1", "169.254.169.254")
    canaries = [Server(host, port=PORT) for host in CANARIES]
    allowed = Allowed("127.0.0.2", port=PORT)
    reached: dict[str, int] = {}
    dialled = 0
    with closing(McpClient(allowed_networks=["127.0.0.2/32"])) as mcp:
        sinks = _sinks(mcp)
        # Names of its own for each, since the second question has another answer.
        names = {f"{n}-{name}": ips for n in range(len(sinks)) for name, ips in NAMES.items()}
        NameServer(names | {name: [[address]] for address, name in CANARIES.items()})
        for number, (sink, dial) in enumerate(sinks.items()):
            before = allowed.connections
            hosts = [*(f"{number}-{name}" for name in NAMES), *NUMBERS]
            urls = [f"http://{host}:{PORT}/" for host in hosts]
            urls += [f"http://{number}-allowed.test:{PORT}{path}" for path in PATHS]
            for url in urls:
                _try(dial, url)
            dialled += len(urls)
            reached[sink] = allowed.connections - before
    of_sinks = [canary.connections for canary in canaries]
    # Proves the canaries: each is reached where nothing is checked.
    for name in CANARIES.values():
        CheckedBackend(None).connect_tcp(name, PORT, timeout=5).close()
    eventually(lambda: all(canary.connections for canary in canaries))
    json.dump({"dialled": dialled, "reached": reached, "canaries": of_sinks}, sys.stdout)


def _sinks(mcp: McpClient) -> dict[str, Dial]:
    return {
        "http_fetch": lambda url: fetch(url, HERE),
        "HTTP tools and webhooks": lambda url: exchange.post(
            exchange.unaborted, url, HERE, {}, b"{}", 5, most_bytes=100
        ),
        "keys of OIDC": lambda url: exchange.get(url, HERE, {}, 5, most_bytes=100),
        "discovery of OIDC": lambda url: ProviderDocuments(HERE).metadata(url),
        "MCP": lambda url: mcp.tools(server_at(url)),
        "openai": lambda url: of_org("openai", url, HERE),
        "anthropic": lambda url: of_org("anthropic", url, HERE),
    }


def _try(dial: Dial, url: str) -> None:
    try:
        dial(url)
    except Exception:
        return


if __name__ == "__main__":
    main()
