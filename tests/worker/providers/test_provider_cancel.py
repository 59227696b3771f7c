"""The time until a vendor is rid of a cancelled run, measured where it reads its socket."""

import threading
import time

import pytest

from arkloop.worker import providers
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from bench.figure import percentile
from bench.silent_vendor import PHASES, SilentVendor
from tests.worker.providers.fake_vendor import REQUEST, route_to

CANCELS = 25  # of each API in each phase: 225


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("provider", "end", "api"),
    [("openai", "/v1", None), ("openai", "/v1", "responses"), ("anthropic", "", None)],
)
def test_a_cancel_closes_the_vendors_socket(
    provider: str, end: str, api: str | None, phase: str
) -> None:
    """The socket is closed within 250 ms wherever the response is, but for moments in which a busy
    machine stands still.

    `make bench` has the figures.
    """
    seconds = []
    with SilentVendor() as vendor:
        route = route_to(provider, f"{vendor.url}/{phase}{end}", api=api)
        for _ in range(CANCELS):
            stop = StopSignal()
            loaded = providers.load(route, faults=False)
            call = threading.Thread(target=_read, args=(loaded, stop))
            call.start()
            vendor.reached.get(timeout=60)
            began = time.perf_counter()
            stop.set(CancelRequested())
            seconds.append(vendor.gone.get(timeout=60) - began)
            call.join(60)
            assert not call.is_alive()
            loaded.close()

    assert percentile(seconds, 0.8) <= 0.25
    assert max(seconds) < 30


def _read(loaded: providers.Provider, stop: StopSignal) -> None:
    with pytest.raises(CancelRequested):
        for _ in loaded.stream(REQUEST, stop):
            pass
