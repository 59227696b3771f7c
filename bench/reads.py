"""Lists and reports beside runs: which part of Postgres' CPU a replica for reads could take away.

    .venv/bin/python -m bench.reads [--runs 1000]

CPU of all processes of Postgres for one run from its POST to its end, for one page of each list,
and for one report, from the kernel's counts, so that other load changes it little. Then the part of
lists and reports in mixes of them. Reads that must show what the client has just written, such as
a run and its events, count to the run: a replica that lags could not serve them.
"""

import argparse
import json
from collections.abc import Sequence

from bench.bursts import burst
from bench.conversations import targets_of, wait_for_ends
from bench.http_clients import Loop, Request, call_all
from bench.machine import commit, machine
from bench.service import Service

CLIENTS = 4
REQUESTS = 400
LISTS = (
    "/v1/runs?limit=50",
    "/v1/runs?limit=50&status=failed",
    "/v1/threads?limit=50",
)
REPORTS = ("/v1/me/usage", "/v1/me/usage/daily", "/v1/me/usage/by-model")
#: Pages of lists and reports for each run: a chat that lists its threads after each message, a
#: dashboard that is refreshed all the time, and programs that only read.
MIXES = ((1.0, 0.05), (5.0, 0.5), (20.0, 2.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    print(json.dumps({"commit": commit(), "machine": machine()}), flush=True)
    with Service(web=1, workers=1) as service:
        loop, targets = Loop(), targets_of(service)
        connections = service.connect()

        def cost(requests: Sequence[Request], clients: int = CLIENTS) -> float:
            """Return the milliseconds of Postgres' CPU of one of them."""
            web, before = service.cpu("web"), service.cpu("postgres")
            answers = call_all(loop, targets, requests, connections=clients, seconds=600)
            wait_for_ends(connections, 600)
            statuses = {status for status, _, _ in answers}
            assert statuses <= {200, 201}, statuses
            of_web, of_postgres = (
                (now - then) * 1000 / len(requests)
                for now, then in ((service.cpu("web"), web), (service.cpu("postgres"), before))
            )
            what = requests[0][1] if requests[0][0] == "GET" else "a run of one word"
            print(f"{what:36} {of_postgres:8.2f} ms of Postgres, {of_web:8.2f} of web", flush=True)
            return of_postgres

        def gets(paths: Sequence[str]) -> dict[str, float]:
            found = {}
            for path in paths:
                found[path] = cost([("GET", path, None)] * REQUESTS, 1)  # few reports at a time
            return found

        creates: list[Request] = [("POST", "/v1/runs", {"message": "hello"})]
        cost(creates * options.runs)  # there is something to list, and nothing is cold
        plain = cost(creates * options.runs)
        before = service.cpu("postgres")
        burst(loop, service, connections, 100)
        streamed = (service.cpu("postgres") - before) * 1000 / 100
        print(f"{'a run of 100 pieces, followed':36} {streamed:8.2f} ms of Postgres", flush=True)
        lists, reports = gets(LISTS), gets(REPORTS)
    page = sum(lists.values()) / len(lists)
    report = sum(reports.values()) / len(reports)
    for pages, of_reports in MIXES:
        read = pages * page + of_reports * report
        print(
            f"{pages:g} pages and {of_reports:g} reports for each run, of Postgres' CPU:"
            f" {read / (read + plain):.0%} beside runs of one word,"
            f" {read / (read + streamed):.0%} beside long ones"
        )


if __name__ == "__main__":
    main()
