"""The time from the POST of a cancel until the model's vendor sees its connection closed.

What is spent after that is spent for nobody: a vendor computes, and charges, until then.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.conversations import prepare, targets_of
from bench.figure import Figure, percentile
from bench.http_clients import Caller, Loop
from bench.service import Service
from bench.silent_vendor import PHASES, SilentVendor

CANCELS = 50
SHORT_CANCELS = 5
WARM_UP = 3
#: From the vendor's first byte, or from the request where it sends none, to the cancel.
CANCEL_AFTER_SECONDS = 0.03
_PATIENCE_SECONDS = 60.0
_SDKS = {"openai": "/v1", "anthropic": ""}  # provider, and what its base_url ends in


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure both SDKs, each before the response's head, after it, and between two deltas."""
    count = SHORT_CANCELS if short else CANCELS
    with TemporaryDirectory(prefix="arkloop-bench-") as folder, SilentVendor() as vendor:
        routes = Path(folder, "routes.yaml")
        routes.write_text(_routes(vendor.url))
        with Service(environ={"ARKLOOP_ROUTES": str(routes)}) as service:
            for sdk in _SDKS:
                for phase in PHASES:
                    yield _cancels(service, vendor, f"{sdk}.{phase}", count)


def _routes(url: str) -> str:
    lines = [
        f"  - {{id: {sdk}.{phase}, provider: {sdk}, model: m, base_url: {url}/{phase}{end},"
        " context_tokens: 128000, prices: {input: 0, output: 0}}"
        for sdk, end in _SDKS.items()
        for phase in PHASES
    ]
    return "\n".join(["routes:", *lines])


def _cancels(service: Service, vendor: SilentVendor, route: str, count: int) -> Figure:
    loop = Loop()
    targets = targets_of(service)
    threads = prepare(loop, targets, WARM_UP + count, "Hi")
    caller = Caller(loop, targets[0])
    seconds: list[float] = []

    def post(path: str, body: object) -> tuple[bytes, float]:
        answers: list[tuple[bytes, float]] = []
        request = targets[0].request("POST", path, body)
        caller.call(
            request, lambda status, data, sent_at, _: answers.append((data, _sent(status, sent_at)))
        )
        loop.until(lambda: answers, _PATIENCE_SECONDS, path)
        return answers[0]

    for number, thread in enumerate(threads):
        answer, _ = post(f"/v1/threads/{thread}/runs", {"route_id": route})
        run_id = answer.partition(b'"run_id":"')[2].partition(b'"')[0].decode()
        vendor.reached.get(timeout=_PATIENCE_SECONDS)
        loop.pause(CANCEL_AFTER_SECONDS)
        _, sent_at = post(f"/v1/runs/{run_id}:cancel", {})
        gone_at = vendor.gone.get(timeout=_PATIENCE_SECONDS)
        if number >= WARM_UP:
            seconds.append(gone_at - sent_at)
    caller.close()
    sdk, _, phase = route.partition(".")
    return Figure(
        name=f"cancel → socket closed at the vendor: {sdk}, {phase}",
        unit="ms",
        numbers={
            "p50": percentile(seconds, 0.5) * 1000,
            "p99": percentile(seconds, 0.99) * 1000,
        },
        count=count,
        at_most={"p99": 250.0},
        note="1 web process, 1 worker",
    )


def _sent(status: int, sent_at: float) -> float:
    assert status < 300, status
    return sent_at
