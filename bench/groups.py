"""The benchmarks by name, in the order in which `python -m bench` runs them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench import (
    bursts,
    busy_threads,
    create,
    distance,
    everything,
    flood,
    fresh,
    latency,
    limits,
    mcp_neighbours,
    neighbours,
    observation,
    processes,
    refused,
    retention,
    row_security,
    slow_clients,
    sockets,
    startup,
    stream_rates,
    streams,
    tool_calls,
    turns,
    usage,
)
from bench.figure import Figure
from bench.history import __main__ as history


@dataclass(frozen=True, slots=True)
class Group:
    """`run(short)` gives the figures, each as soon as it is known if it is an iterator."""

    name: str
    measures: str
    run: Callable[[bool], Iterable[Figure]]


def _history(short: bool) -> Iterator[Figure]:
    if short:
        yield from history.measure(runs=10_000, forget=1_000, count=20)
        return
    for runs in (100_000, 1_000_000):
        yield from history.measure(runs=runs, count=200)


GROUPS = (
    Group(
        "latency",
        "an idle system: POST → first event, cancel → end",
        lambda short: latency.measure(short=short),
    ),
    Group(
        "sockets",
        "cancel → the model vendor's connection is closed",
        lambda short: sockets.measure(short=short),
    ),
    Group(
        "create",
        "runs created in a closed loop, and executed meanwhile",
        lambda short: create.measure(short=short),
    ),
    Group(
        "fresh",
        "runs created by processes that have just started, beside their next ones",
        lambda short: fresh.measure(short=short),
    ),
    Group(
        "limits",
        "runs created and streams opened in orgs with limits, beside one without",
        lambda short: limits.measure(short=short),
    ),
    Group(
        "everything",
        "a service with limits, row-level security, metrics and webhooks, beside one without",
        lambda short: everything.measure(short=short),
    ),
    Group(
        "turns",
        "a long queue: starts of orgs of weights 3 and 1, and of a third one's single run",
        lambda short: turns.measure(short=short),
    ),
    Group(
        "flood",
        "single runs of an org beside another one's 10,000 runs in the queue",
        lambda short: flood.measure(short=short),
    ),
    Group(
        "busy",
        "runs created in busy threads, beside plain creates",
        lambda short: busy_threads.measure(short=short),
    ),
    Group(
        "observed",
        "requests and runs with metrics and spans: CPU",
        lambda short: observation.measure(short=short),
    ),
    Group(
        "bursts",
        "50, 200 and 1,000 runs of 100 deltas × 20 ms, each followed",
        lambda short: bursts.measure(short=short),
    ),
    Group(
        "processes",
        "two web processes and two workers against one of each, and workers that give way",
        lambda short: processes.measure(short=short),
    ),
    Group(
        "long",
        "one run of 20,000 deltas to 1 and to 20 clients",
        lambda short: stream_rates.long_run(short=short),
    ),
    Group(
        "replay",
        "100,000 events of one run from Postgres",
        lambda short: stream_rates.replay(short=short),
    ),
    Group("idle", "500, 2,000 and 5,000 idle streams", lambda short: streams.idle(short=short)),
    Group("delivery", "events to 5,000 streams", lambda short: streams.delivery(short=short)),
    Group("storm", "5,000 clients reconnect at once", lambda short: streams.storm(short=short)),
    Group(
        "distance",
        "operations with 10 ms to the stores and back, rates with 1 ms",
        lambda short: distance.measure(short=short),
    ),
    Group(
        "startup",
        "time and memory until a process serves",
        lambda short: startup.measure(1 if short else 3),
    ),
    Group(
        "neighbours",
        "a quiet org's runs beside an org that does its worst",
        lambda short: neighbours.measure(short=short),
    ),
    Group(
        "slow",
        "requests beside 1,000 connections that send or take little",
        lambda short: slow_clients.measure(short=short),
    ),
    Group(
        "mcp",
        "an org's MCP calls beside an org whose MCP servers do their worst",
        lambda short: mcp_neighbours.measure(short=short),
    ),
    Group(
        "tools",
        "one tool call, by where the tool runs",
        lambda short: tool_calls.measure(short=short),
    ),
    Group(
        "refused",
        "runs that are created while Redis refuses connections",
        lambda short: refused.measure(short=short),
    ),
    Group(
        "walls",
        "requests behind row-level security, and without it",
        lambda short: row_security.measure(short=short),
    ),
    Group(
        "retention",
        "10,000,000 old events deleted with their partition, and bit by bit",
        lambda short: retention.measure(short=short),
    ),
    Group(
        "reports",
        "usage reports of 100,000 and 1,000,000 runs of a day, and summing them up",
        lambda short: usage.measure(short=short),
    ),
    Group("history", "lists and replay among 100,000 and 1,000,000 runs", _history),
)
BY_NAME = {group.name: group for group in GROUPS}
