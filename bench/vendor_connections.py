"""The cost of a connection to a model's vendor: `python -m bench.vendor_connections`.

The first call of a run over TLS, by a client that an earlier run has left and by a new one, in
turns: seconds until it has ended, and the worker's CPU. The vendor is on this machine, so that both
round trips of connecting take next to nothing; they come on top where it is far away.
"""

import statistics
import tempfile
import time
from pathlib import Path

import trustme

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security import checked_http
from arkloop.worker import providers
from arkloop.worker.contract.messages import ModelRequest, UserMessage
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import abortable_http
from bench.refusing_vendor import refusing_vendor

ROUNDS = 200
_REQUEST = ModelRequest(model="m", system_prompt="Be brief.", messages=[UserMessage("Hi")])


def main() -> None:
    """Print the medians of both, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="arkloop-bench-") as folder:
        certificate = Path(folder) / "vendor.pem"
        authority = trustme.CA()
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        authority.configure_trust(checked_http.ssl_context())
        with refusing_vendor(certificate) as url:
            routes = [
                Route(id=name, provider="openai", model="m", base_url=url, api_key="sk-bench")
                for name in ("kept", "new")
            ]
            for route in routes:
                _milliseconds(route)  # imports the SDK
            found = [(_milliseconds(routes[0]), _new(routes[1])) for _ in range(ROUNDS)]
    for name, place in (("until the end of the call", 0), ("CPU of the worker", 1)):
        kept, new = (statistics.median(one[k][place] for one in found) for k in (0, 1))
        ratio = f"{kept / new:.2f} ×"
        print(f"{name}, ms: kept connection {kept:.2f}, new one {new:.2f}, {ratio}, n={ROUNDS}")


def _new(route: Route) -> tuple[float, float]:
    """Make the call after the client of the route's last run was closed."""
    idle = abortable_http._idle.take(route, None)
    assert idle is not None
    idle.hang_up()
    return _milliseconds(route)


def _milliseconds(route: Route) -> tuple[float, float]:
    """Return the milliseconds that a run's first call takes, and those of CPU."""
    began, began_cpu = time.monotonic(), time.thread_time()
    provider = providers.load(route, faults=False)
    for _ in provider.stream(_REQUEST, StopSignal()):
        pass
    provider.close()
    return (time.monotonic() - began) * 1000, (time.thread_time() - began_cpu) * 1000


if __name__ == "__main__":
    main()
