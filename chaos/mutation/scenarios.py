"""The scenarios for mutants: short, and with no trouble besides the one that a guard is there
for.
"""

import time
from collections.abc import Callable

from sqlalchemy import create_engine, text

from arkloop.shared.storage.connections import Connections
from chaos import scenarios
from chaos.clients.load import Load
from chaos.system.member import Member, wait_until
from chaos.system.stack import QUICK
from chaos.trial import Scenario, Trial

WAIT_SECONDS = 30.0
#: Of its lease of three seconds, and until others had their chance to lose runs to it.
HELD_UP_SECONDS = 9.0

_HELD = """
SELECT count(*) FROM runs r JOIN workers w ON w.id = r.owner
WHERE r.state = 'executing' AND w.pid = :pid
"""


def workers_killed(trial: Trial) -> None:
    """Kill all workers at once, in the middle of everything."""
    trial.pause(2, 2.5)
    with trial.fault("workers killed"):
        for worker in trial.stack.workers:
            worker.kill()
    for worker in trial.stack.workers:
        worker.wait_ready()
    trial.pause(0.5, 1)


def killed_at(point: str) -> Callable[[Trial], None]:
    """Start one more worker, which dies at this fault point."""

    def inject(trial: Trial) -> None:
        armed = trial.stack.start_worker(f"{point}:KILL")
        wait_until(lambda: armed.deaths > 0, WAIT_SECONDS, f"a worker dies at {point}")
        armed.wait_ready()
        trial.pause(0.5, 1)

    return inject


def poison_run(trial: Trial) -> None:
    """Start a run that kills its worker each time, next to others that do no harm."""
    poison = Load(
        lambda: trial.stack.urls,
        trial.stack.api_key("a"),
        trial.journal,
        seed=trial.rng.randrange(1_000_000),
        sink=trial.stack.folder / "no-sink",
        runs=1,
        concurrency=1,
        kinds={"poison": 1},
    )
    poison.start()
    poison.join(WAIT_SECONDS / 2)
    poison.finish(deadline=1)


def zombie(trial: Trial) -> None:
    """Freeze a worker until its runs are taken from it; it then continues at once."""
    connections = trial.stack.connect()
    trial.pause(1.5, 2)
    victim = max(trial.stack.workers, key=lambda worker: _held(connections, worker))
    with trial.fault("worker frozen", pid=victim.pid):
        victim.freeze()
        _wait_for_loss(connections, victim)
        victim.thaw()
    trial.pause(1, 1.5)


def zombie_at(point: str) -> Callable[[Trial], None]:
    """Freeze a worker at this fault point."""

    def inject(trial: Trial) -> None:
        connections = trial.stack.connect()
        armed = trial.stack.start_worker(f"{point}:STOP")
        wait_until(lambda: armed.is_frozen, WAIT_SECONDS, f"a worker stops at {point}")
        _wait_for_loss(connections, armed)
        armed.thaw()
        trial.pause(1, 1.5)

    return inject


def lease_held_up(trial: Trial) -> None:
    """Lock a worker's row, so that it can do everything but renew its lease."""
    engine = create_engine(trial.stack.postgres.url)
    trial.pause(1, 1.5)
    victim = trial.rng.choice(trial.stack.workers)
    with trial.fault("lease held up", pid=victim.pid), engine.begin() as sql:
        row = text("SELECT FROM workers WHERE pid = :pid FOR UPDATE")
        sql.execute(row, {"pid": victim.pid})
        time.sleep(HELD_UP_SECONDS)
    engine.dispose()
    trial.pause(0.5, 1)


def flushes(trial: Trial) -> None:
    """Flush Redis again and again."""
    redis = trial.stack.redis_client()
    for _ in range(6):
        trial.pause(0.5, 0.8)
        with trial.fault("redis flushed"):
            redis.flushall()


def redis_away(trial: Trial) -> None:
    """Stop Redis for some seconds; it is empty afterwards."""
    trial.pause(1, 1.5)
    with trial.fault("redis away"):
        trial.stack.redis.kill()
        time.sleep(2.5)
        trial.stack.redis.start()
    trial.pause(0.5, 1)


def postgres_away(trial: Trial) -> None:
    """Stop Postgres three times within one step, each time for longer than a lease."""
    lease = float(trial.stack.environ["ARKLOOP_LEASE_SECONDS"])
    for _ in range(3):
        trial.pause(1.5, 1.8)
        with trial.fault("postgres away"):
            trial.stack.postgres.stop(immediate=True)
            time.sleep(lease + 0.3)
            trial.stack.postgres.start()
    trial.pause(0.5, 1)


def _held(connections: Connections, worker: Member) -> int:
    with connections.reading() as sql:
        return int(sql.scalar(text(_HELD), {"pid": worker.pid}) or 0)


def _wait_for_loss(connections: Connections, worker: Member) -> None:
    wait_until(lambda: not _held(connections, worker), WAIT_SECONDS, "its runs are taken from it")


SCENARIOS = (
    scenarios.BY_NAME["plain"],
    Scenario(
        name="questions",
        rows="",
        about="no fault, runs that ask",
        inject=scenarios.plain,
        kinds={"ask": 1},
    ),
    Scenario(name="workers-killed", rows="1", about="all at once", inject=workers_killed),
    Scenario(
        name="killed-in-tool",
        rows="1",
        about="between a tool's effect and its result",
        inject=killed_at("worker.in_tool:1"),
        workers=1,
        kinds={"tools": 1},
    ),
    Scenario(
        name="killed-after-end",
        rows="1",
        about="after the commit of an end",
        inject=killed_at("worker.ended:1"),
        workers=1,
    ),
    Scenario(
        name="killed-before-publish",
        rows="1",
        about="between the commit of events and Redis",
        inject=killed_at("worker.committed:9"),
        workers=1,
    ),
    Scenario(
        name="poison-run",
        rows="28",
        about="a run that kills its worker",
        inject=poison_run,
        kinds={"talk": 1, "tools": 2},
        concurrency=4,
    ),
    Scenario(
        name="zombie",
        rows="4",
        about="SIGSTOP until its runs are taken over",
        inject=zombie,
        kinds={"long": 1},
        concurrency=10,
    ),
    Scenario(
        name="zombie-before-tools",
        rows="4",
        about="the same, before tools are called",
        inject=zombie_at("worker.after_model:1"),
        workers=1,
        kinds={"tools": 1},
        concurrency=6,
    ),
    Scenario(
        name="zombie-cancelled",
        rows="4",
        about="the same, while its runs are cancelled",
        inject=zombie_at("worker.after_model:1"),
        workers=1,
        kinds={"cut": 1},
    ),
    Scenario(
        name="lease-held-up",
        rows="4, 17",
        about="a worker that cannot renew its lease",
        inject=lease_held_up,
        kinds={"long": 1, "talk": 1},
    ),
    Scenario(
        name="flushes",
        rows="9",
        about="FLUSHALL",
        inject=flushes,
    ),
    Scenario(
        name="redis-away",
        rows="8",
        about="SIGKILL, 2.5 s without it, empty",
        inject=redis_away,
        kinds={"talk": 2, "ask": 1, "stopped": 4},
        persist_redis=False,
    ),
    Scenario(
        name="postgres-away",
        rows="14, 15",
        about="three times longer than a lease",
        inject=postgres_away,
        pace={**QUICK, "ARKLOOP_LEASE_SECONDS": "2"},
        kinds={"long": 1, "ask": 1},
        concurrency=12,
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
