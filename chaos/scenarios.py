"""The rows of the fault matrix, as things that are done to a system under load."""

import time
from dataclasses import replace
from uuid import UUID

from sqlalchemy import text

from chaos import kills, outages
from chaos.system import small_disk
from chaos.system.stack import DEFAULT
from chaos.trial import Scenario, Trial
from chaos.verdict.violations import Allow

#: Runs of short steps: who is killed three times within one is given up, as promised.
BRIEF = {"tools": 3, "ask": 3, "busy": 1, "cancel": 1}
#: Gunicorn listens before its worker has loaded the application.
WEB_RESTARTS = Allow(answer_in_fault=10.0, grace=8.0)
#: Without a fault runs take some seconds, on a busy machine some more.
CALM = Allow(end=30.0)
#: Workers that are stopped hand over their runs, which wait for no lease.
DEPLOY = replace(WEB_RESTARTS, end=60.0)
#: Some of the killed workers execute nothing at that moment.
KILLS = Allow(resumes_per_worker_death=0.5)
#: More clients than two cores carry.
OVERLOAD = Allow(answer_in_fault=10.0, grace=8.0, sheds=True)
#: While Postgres is silent, a request may wait twice: for a connection, and for its answer.
SILENT_POSTGRES = Allow(answer_in_fault=10.0, grace=8.0)


def plain(trial: Trial) -> None:
    trial.pause(4, 5)


def duplicates(trial: Trial) -> None:
    """Send every message ten times more, at once and after the end of its run."""
    connections = trial.stack.connect()
    seen: set[UUID] = set()
    for _ in trial.rounds(40, 15):
        time.sleep(0.2)
        with connections.reading() as sql:
            found = set(sql.scalars(text("SELECT id FROM runs ORDER BY id DESC LIMIT 20")))
        for run_id in found:
            for _ in range(5 if run_id in seen else 10):
                connections.enqueue([run_id])
                trial.count("messages")
        seen |= found


SCENARIOS = (
    Scenario(name="plain", rows="", about="no fault", inject=plain, allow=CALM),
    Scenario(
        name="kill-points",
        rows="1",
        about="SIGKILL at each of 14 places",
        inject=kills.kill_points,
        workers=1,
        in_short_cut=True,
    ),
    Scenario(
        name="worker-kills",
        rows="1, 2",
        about="SIGKILL at random times",
        inject=kills.worker_kills,
        allow=KILLS,
        workers=4,
        kinds=BRIEF,
    ),
    Scenario(
        name="rolling-restart",
        rows="3",
        about="SIGTERM to everything",
        inject=kills.rolling_restart,
        allow=DEPLOY,
    ),
    Scenario(
        name="zombies",
        rows="4",
        about="SIGSTOP for two leases",
        inject=kills.zombies,
        workers=5,
    ),
    Scenario(
        name="zombie-points",
        rows="4",
        about="the same at named places",
        inject=kills.zombie_points,
        workers=1,
        in_short_cut=True,
    ),
    Scenario(
        name="api-kills",
        rows="5, 6, 7",
        about="SIGKILL after a commit, of gunicorn's worker and master",
        inject=kills.api_kills,
        allow=WEB_RESTARTS,
        in_short_cut=True,
    ),
    Scenario(
        name="redis-empty",
        rows="8",
        about="SIGKILL, restart empty",
        inject=outages.redis_empty,
        in_short_cut=True,
    ),
    Scenario(
        name="redis-flush",
        rows="9",
        about="FLUSHALL, DEL, CLIENT KILL",
        inject=outages.redis_flush,
    ),
    Scenario(name="redis-killed", rows="10", about="SIGKILL, restart", inject=outages.redis_killed),
    Scenario(
        name="redis-old-copy",
        rows="11",
        about="back in time",
        inject=outages.redis_from_an_old_copy,
    ),
    Scenario(
        name="redis-silent", rows="12", about="frozen, unreachable", inject=outages.redis_silent
    ),
    Scenario(
        name="redis-refused",
        rows="12",
        about="nobody listens; a worker restarts",
        inject=outages.redis_refused,
        pace=DEFAULT,
        in_short_cut=True,
    ),
    Scenario(
        name="broker-refused",
        rows="12",
        about="the same of a broker of its own",
        inject=outages.broker_refused,
        pace=DEFAULT,
        separate_broker=True,
    ),
    Scenario(name="redis-full", rows="13", about="out of memory", inject=outages.redis_full),
    Scenario(
        name="postgres-immediate",
        rows="14",
        about="immediate stop and start",
        inject=outages.postgres_immediate,
        in_short_cut=True,
    ),
    Scenario(
        name="postgres-gone",
        rows="15",
        about="stopped, frozen, unreachable",
        inject=outages.postgres_gone,
        allow=SILENT_POSTGRES,
    ),
    Scenario(
        name="lost-answers",
        rows="16",
        about="COMMIT without its answer",
        inject=outages.lost_answers,
        in_short_cut=True,
    ),
    Scenario(
        name="locked-tables",
        rows="17",
        about="few connections, long locks",
        inject=outages.locked_tables,
        # With fewer the load's first requests would be too many for them, without any lock.
        environ={"ARKLOOP_DATABASE_POOL_SIZE": "8"},
    ),
    Scenario(
        name="sessions-ended",
        rows="18",
        about="pg_terminate_backend",
        inject=outages.sessions_ended,
    ),
    Scenario(
        name="network", rows="16, 18", about="slow, cut, half open", inject=outages.connections_cut
    ),
    Scenario(name="duplicates", rows="25", about="each message ten times", inject=duplicates),
    Scenario(
        name="expired-streams", rows="29", about="trimmed, gone", inject=outages.expired_streams
    ),
    Scenario(
        name="poison",
        rows="28",
        about="runs that kill their worker",
        inject=kills.poison,
        kinds={"tools": 8, "ask": 3, "busy": 2, "poison": 0.5},
        # By chance alone one seed of six would have none.
        first=("poison",),
        workers=3,
        concurrency=12,
    ),
    Scenario(
        name="disk-full",
        rows="27",
        about="no space under Postgres",
        inject=outages.disk_full,
        disk_megabytes=160,
        needs=small_disk.lacks,
        allow=SILENT_POSTGRES,
    ),
    Scenario(
        name="wrong-clocks",
        rows="26",
        about="an hour ahead, an hour behind",
        inject=outages.wrong_clocks,
        needs=outages.lacks_faketime,
        allow=WEB_RESTARTS,
    ),
    Scenario(
        name="many-streams",
        rows="7, 20",
        about="web processes die under many streams",
        inject=kills.web_kills,
        concurrency=25,
        followers=10,
        kinds={"talk": 1},
        allow=OVERLOAD,
    ),
    Scenario(
        name="pairs", rows="33", about="two at once", inject=kills.pairs, allow=SILENT_POSTGRES
    ),
    Scenario(
        name="storm",
        rows="all",
        about="100 worker kills, 10 of each other kind",
        inject=kills.storm,
        workers=6,
        kinds=BRIEF,
        concurrency=30,
        allow=replace(OVERLOAD, resumes_per_worker_death=KILLS.resumes_per_worker_death),
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
