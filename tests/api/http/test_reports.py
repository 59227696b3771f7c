"""Reports of one org beside the requests of others."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from uuid import UUID

import pytest
import redis
from flask import Flask
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import text

from arkloop.api.http import reports as module
from arkloop.api.http.reports import Reports
from arkloop.shared.config import Settings
from arkloop.shared.errors import ArkloopError, RateLimitExceeded, Unavailable
from arkloop.shared.ids import new_id
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.postgres import FIRST_WITH_TRANSACTION_TIMEOUT
from tests.clients import Register, error_of
from tests.waiting import eventually, in_parallel


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """A report may be idle for a third of the lease, while another one waits for its turn."""
    return replace(settings, lease_seconds=180)


@contextmanager
def slow_reports(connections: Connections) -> Iterator[None]:
    """Keep reports from ending during the block."""
    with connections.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE run_usage IN ACCESS EXCLUSIVE MODE"))
        yield


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that take long on a busy machine, after which their org needs no rest."""
    monkeypatch.setattr(module, "BURST_SECONDS", 600.0)


@pytest.mark.parametrize("path", ["me/usage", "me/usage/daily", "me/usage/by-model", "budget"])
def test_reports_leave_the_connections_to_other_requests(
    path: str, connections: Connections, register: Register
) -> None:
    """However many one org asks for, another org's request is served, and they are refused."""
    noisy, quiet = register(), register()
    noisy.get("/v1/me"), quiet.get("/v1/me")
    with slow_reports(connections):
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.extend(
                in_parallel(40, lambda _: noisy.get(f"/v1/{path}").status_code)
            )
        )
        began = time.monotonic()
        asking.start()
        eventually(lambda: waiting(connections) > 0)
        served = quiet.get("/v1/threads").status_code
        asking.join()
        took = time.monotonic() - began

    assert 200 == served  # within half a second, or it would have got no connection
    # One had the turn until the table was not to be had, and another one if they came that late.
    assert {429, 503} == set(answers)
    assert answers.count(503) <= 1 + took // module.TIMEOUTS.lock


@pytest.mark.parametrize("path", ["me/usage", "budget"])
def test_reports_are_served_while_commits_wait(
    path: str, connections: Connections, register: Register
) -> None:
    """They take a lock, but write nothing."""
    user = register()
    connections.commit_outage.failed()
    try:
        assert 200 == user.get(f"/v1/{path}").status_code
    finally:
        connections.commit_outage.answered()


def waiting(connections: Connections) -> int:
    """Count the reports that wait for their table."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'arkloop-reports' AND wait_event_type = 'Lock'
    """
    with connections.reading() as sql:
        return int(sql.scalar(text(query)) or 0)


@pytest.mark.usefixtures("no_rest")
def test_an_org_has_one_report_at_a_time(app: Flask) -> None:
    """Its next ones wait for a moment; another org's report runs beside it."""
    assert max(module.TURN.usual, module.TURN.standing) < 1
    reports: Reports = app.extensions["arkloop.reports"]
    one, other = new_id(), new_id()
    with reports.reading(one):
        with reports.reading(other) as sql:
            assert 1 == sql.scalar(text("SELECT 1"))
        began = time.monotonic()
        with pytest.raises(RateLimitExceeded), reports.reading(one):
            pass
        assert time.monotonic() - began < 20
    with reports.reading(one):
        pass
    assert {} == reports._turns


@pytest.mark.usefixtures("no_rest")
def test_an_org_has_one_report_at_a_time_in_all_processes(connections: Connections) -> None:
    """Each report keeps a processor of Postgres busy, which other orgs need."""
    assert module.TURN_ELSEWHERE_SECONDS <= 1
    one, other = new_id(), new_id()
    with closing(Reports(connections)) as here, closing(Reports(connections)) as elsewhere:
        with elsewhere.reading(one):
            with here.reading(other) as sql:
                assert 1 == sql.scalar(text("SELECT 1"))
            began = time.monotonic()
            with pytest.raises(RateLimitExceeded, match="Too many reports"), here.reading(one):
                pass
            assert time.monotonic() - began < 20
        with here.reading(one) as sql:
            assert 1 == sql.scalar(text("SELECT 1"))


@pytest.mark.parametrize("way", ["ends", "fails"])
def test_an_org_rests_after_long_reports(
    way: str, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all processes: the runs of other orgs have one processor less while a report runs."""
    monkeypatch.setattr(module, "SHARE", 0.5)
    monkeypatch.setattr(module, "BURST_SECONDS", 0.1)
    monkeypatch.setattr(module, "REST_SECONDS", 30.0)
    one, other = new_id(), new_id()
    with closing(Reports(connections)) as here, closing(Reports(connections)) as elsewhere:
        began = time.monotonic()
        with suppress(ZeroDivisionError), elsewhere.reading(one):
            time.sleep(0.4)
            _ = 1 / (way == "ends")
        assert 0 == here._rest_of(other)
        with here.reading(other) as sql:
            assert 1 == sql.scalar(text("SELECT 1"))
        with here.reading(one):
            # 0.3 s of the 0.4 s count, for twice as long, and the burst saves it 0.2 s.
            assert time.monotonic() - began >= 0.75


def test_a_report_is_refused_while_the_org_has_to_rest_for_long(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response says when the org will have rested, and comes late enough for clients without
    patience.
    """
    monkeypatch.setattr(module, "SHARE", 0.01)
    monkeypatch.setattr(module, "REST_SECONDS", 0.3)
    monkeypatch.setattr(module, "BURST_SECONDS", 0.0)
    org_id = new_id()
    with closing(Reports(connections)) as reports:
        began = time.monotonic()
        with reports.reading(org_id):
            time.sleep(0.3)
            slept_at = time.monotonic()
        took = time.monotonic() - began
        began = time.monotonic()
        with pytest.raises(RateLimitExceeded) as refused, reports.reading(org_id):
            pass
        refused_at = time.monotonic()
        assert refused_at - began >= 0.3

    assert refused.value.retry_after is not None
    # 0.2 s of the 0.3 s count, a hundred times, less the 0.3 s in which it was waiting.
    least = 20 - (refused_at - slept_at)
    assert least <= refused.value.retry_after <= math.ceil(took / module.SHARE)


def test_a_report_refused_in_the_queue_is_given_the_rest(connections: Connections) -> None:
    """The reports before it were long: a second later it would be refused again."""
    org_id, rested_at = new_id(), 0.0

    class Rested(Reports):
        @contextmanager
        def turn(self, org_id: UUID) -> Iterator[bool]:
            """Let the rest begin while a report waits that was not to wait for it."""
            nonlocal rested_at
            rested_at = time.monotonic()
            connections.redis.set(connections.keys.reports(org_id), "", ex=60)
            with super().turn(org_id) as is_next:
                yield is_next

    with closing(Rested(connections)) as reports, Reports.turn(reports, org_id):
        with pytest.raises(RateLimitExceeded, match="taken long") as refused:
            with reports.reading(org_id):
                pass
        waited = time.monotonic() - rested_at

    assert refused.value.retry_after is not None
    assert 40 - waited <= refused.value.retry_after <= 40


def test_budgets_and_limits_of_keys_do_not_wait_for_the_rest(
    app: Flask, connections: Connections, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that stops the spending is not refused because others look at it."""
    waits, go_on = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        waits.set()
        go_on.wait(10)

    monkeypatch.setattr(module, "REST_SECONDS", 0.1)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    alice = register()
    key_id = (alice.post("/v1/api-keys", {"name": "limited"}).json or {})["id"]
    connections.redis.set(connections.keys.reports(alice.org_id), "", ex=600)
    refused: list[int] = []
    asking = threading.Thread(
        target=lambda: refused.append(alice.get("/v1/me/usage").status_code),
    )
    asking.start()
    assert waits.wait(30)
    limits = {"max_cost_usd": 5}
    statuses = [
        alice.get("/v1/budget").status_code,
        alice.call("PUT", "/v1/budget", json=limits).status_code,
        alice.get("/v1/budget/end-users").status_code,
        alice.call("PUT", "/v1/budget/end-users", json=limits).status_code,
        alice.patch(f"/v1/api-keys/{key_id}", limits).status_code,
    ]
    go_on.set()
    asking.join()

    assert [200] * 5 == statuses
    assert [429] == refused


def test_a_rest_does_not_grow_beyond_measure(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of budgets, which do not wait for it, delay reports by two minutes at most."""
    monkeypatch.setattr(module, "SHARE", 0.0001)
    org_id = new_id()
    with closing(Reports(connections)) as reports:
        with reports.reading(org_id, waits_for_rest=False):
            time.sleep(0.2)

    rest = connections.redis.ttl(connections.keys.reports(org_id))
    assert module.LONGEST_REST_SECONDS - 60 <= rest <= module.LONGEST_REST_SECONDS


def test_short_reports_need_no_rest(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what others may notice counts: most orgs can request reports as often as they like.

    Such a report asks Redis once, before its transaction.
    """
    monkeypatch.setattr(module, "FREE_SECONDS", 30.0)
    monkeypatch.setattr(module, "BURST_SECONDS", 0.0)
    asked: list[str] = []
    look = connections.redis.pttl
    monkeypatch.setattr(connections.redis, "pttl", lambda key: (asked.append(key), look(key))[1])
    org_id = new_id()
    with closing(Reports(connections)) as reports:
        for _ in range(5):
            with reports.reading(org_id) as sql:
                assert 1 == sql.scalar(text("SELECT 1"))
        assert 5 == len(asked)
        assert 0 == connections.redis.exists(connections.keys.reports(org_id))


def test_reports_need_no_redis(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is out of reach, no org rests: reports are not worth an outage of their own."""
    monkeypatch.setattr(module, "BURST_SECONDS", 0.0)
    refusing = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    away = replace(connections, redis=refusing, redis_outage=Outage(60))
    org_id = new_id()
    with closing(Reports(away)) as reports:
        for _ in range(2):
            with reports.reading(org_id) as sql:
                time.sleep(0.15)
                assert 1 == sql.scalar(text("SELECT 1"))


def test_no_process_keeps_the_turn_for_its_own_reports(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in which reports of the org are always waiting lets another one's come between.

    All takes longer here, so that a busy machine gets on meanwhile.
    """
    assert module.YIELD_SECONDS > max(module.RETRY_SECONDS)
    monkeypatch.setattr(module, "YIELD_SECONDS", 0.5)
    monkeypatch.setattr(module, "TURN", Patience(30, 30))
    monkeypatch.setattr(module, "TURN_ELSEWHERE_SECONDS", 3.0)
    monkeypatch.setattr(module, "SHARE", 1.0)
    org_id, held, stopped = new_id(), threading.Event(), threading.Event()
    with closing(Reports(connections)) as here, closing(Reports(connections)) as elsewhere:

        def keep_busy(_number: int) -> None:
            while not stopped.is_set():
                with suppress(ArkloopError), elsewhere.reading(org_id):
                    held.set()
                    stopped.wait(0.5)

        busy = threading.Thread(target=in_parallel, args=(2, keep_busy))
        busy.start()
        try:
            for _ in range(4):
                held.clear()
                assert held.wait(30)
                with here.reading(org_id) as sql:
                    assert 1 == sql.scalar(text("SELECT 1"))
        finally:
            stopped.set()
            busy.join()


def test_a_report_ends_at_its_time_limit(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what would help."""
    assert module.TIMEOUTS.answer <= 6
    monkeypatch.setattr(module, "TIMEOUTS", replace(module.TIMEOUTS, statement=0.5))
    reports = Reports(connections)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="shorter period"), reports.reading(new_id()) as sql:
        sql.execute(text("SELECT pg_sleep(20)"))
    reports.close()

    assert time.monotonic() - began < 15


def test_all_sums_of_a_report_have_one_time_limit(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where leases are short, the transaction ends as soon as a single statement would."""
    with connections.reading() as sql:
        if int(sql.scalar(text("SHOW server_version_num"))) < FIRST_WITH_TRANSACTION_TIMEOUT:
            pytest.skip("this Postgres has no limit for transactions")
    monkeypatch.setattr(module, "TIMEOUTS", replace(module.TIMEOUTS, statement=3.0))
    # Two thirds of it are less than that, and a third is what may pass between two sums.
    settings = replace(connections.settings, lease_seconds=4.2)
    with (
        closing(Reports(replace(connections, settings=settings))) as reports,
        pytest.raises(Unavailable, match="longer than 3 s; request a shorter period"),
        reports.reading(new_id()) as sql,
    ):
        for _ in range(20):
            sql.execute(text("SELECT pg_sleep(0.4)"))


@pytest.mark.usefixtures("no_rest")
def test_a_report_that_is_refused_has_the_one_error_shape(
    app: Flask, connections: Connections, register: Register
) -> None:
    """A refused report is no fault of the service, and the response says when to try again."""
    alice = register()
    reports: Reports = app.extensions["arkloop.reports"]
    with reports.reading(alice.org_id):
        response = alice.get("/v1/me/usage")

    assert (429, "rate_limit.exceeded") == error_of(response)
    assert "1" == response.headers["Retry-After"]
    assert 200 == alice.get("/v1/me/usage").status_code


def test_reports_are_planned_for_their_filters(connections: Connections) -> None:
    """No statement is prepared: its plan would be one for all filters."""
    reports = Reports(connections)
    try:
        with reports.reading(new_id()) as sql:
            driver = sql.connection.driver_connection
            assert driver is not None
            assert driver.prepare_threshold is None
    finally:
        reports.close()


def test_a_report_takes_one_processor_of_postgres(connections: Connections) -> None:
    """Parallel plans would take all of them from the runs of other orgs."""
    with closing(Reports(connections)) as reports, reports.reading(new_id()) as sql:
        # Every plan that may be parallel is; before Postgres 16 the setting has another name.
        is_old = (sql.dialect.server_version_info or ()) < (16,)
        forced = "force_parallel_mode" if is_old else "debug_parallel_query"
        sql.execute(text(f"SET {forced} = on"))
        plan = sql.scalars(text("EXPLAIN SELECT sum(cost_usd) FROM run_usage")).all()

    assert not [line for line in plan if "Gather" in line], plan
