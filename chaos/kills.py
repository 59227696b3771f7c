"""The faults of web and worker processes: killed, stopped, frozen, at random or at a point."""

import time

from sqlalchemy import text

from arkloop.shared.fault_points import POINTS
from chaos.system.member import Member, wait_until
from chaos.trial import Trial

#: The load has no run that waits for results from outside, and no webhooks; `make client-tools` and
#: `make webhooks` kill at these.
_BESIDE_THE_LOAD = ("worker.before_park", "worker.parked", "worker.webhook_sent")
KILL_POINTS = [
    name for name in POINTS if name.startswith("worker.") and name not in _BESIDE_THE_LOAD
]
#: Not three: one after the other they could take the same run, and it would be given up.
ARMED_AT_ONCE = 2
#: The time for a process to come to its point, or for what it has left to end: it bounds a hang.
REACHED_SECONDS = 180.0


def kill_points(trial: Trial) -> None:
    """Start an armed worker for each point, some at a time; each must die there."""
    points = list(KILL_POINTS)
    trial.rng.shuffle(points)
    for start in range(0, len(points), ARMED_AT_ONCE):
        armed: list[Member] = []
        for point in points[start : start + ARMED_AT_ONCE]:
            nth = trial.rng.randint(1, 4)
            armed.append(trial.stack.start_worker(f"{point}:{nth}:KILL"))
        for member in armed:
            _wait_for_death(member)
            trial.count("deaths at a point")
        for member in armed:
            member.stop()
        _wait_until_nobody_is_suspect(trial)


def worker_kills(trial: Trial) -> None:
    for _ in trial.rounds(8, 4):
        trial.pause(3, 4.5)
        _kill(trial)


def rolling_restart(trial: Trial) -> None:
    """Send SIGTERM to every process, one after the other, as a deploy does."""
    for _ in trial.rounds(2, 1):
        for member in (*trial.stack.workers, *trial.stack.web):
            trial.pause(0.3, 1)
            deaths = member.deaths
            with trial.fault(f"{member.role} deployed", pid=member.pid):
                member.terminate()
                _wait_for_death(member, deaths)
                member.wait_ready()
            trial.count("restarts")


def zombies(trial: Trial) -> None:
    """Freeze workers for two leases; they wake up when others have their runs."""
    lease = float(trial.stack.environ["ARKLOOP_LEASE_SECONDS"])
    for _ in trial.rounds(5, 1):
        trial.pause(0.5, 1.5)
        victims = trial.rng.sample(trial.stack.workers, len(trial.stack.workers) - 1)
        with trial.fault("worker frozen", pids=[victim.pid for victim in victims]):
            for victim in victims:
                victim.freeze()
                time.sleep(trial.rng.uniform(0, 0.3))
            time.sleep(2 * lease)
            for victim in victims:
                victim.thaw()
        trial.count("zombies", len(victims))
    trial.pause(1, 2)


def zombie_points(trial: Trial) -> None:
    """Freeze workers at named points, in the middle of something."""
    lease = float(trial.stack.environ["ARKLOOP_LEASE_SECONDS"])
    points = trial.rng.sample(KILL_POINTS, 4 if trial.short else 8)
    for start in range(0, len(points), ARMED_AT_ONCE):
        armed = [
            trial.stack.start_worker(f"{point}:{trial.rng.randint(1, 3)}:STOP")
            for point in points[start : start + ARMED_AT_ONCE]
        ]
        for member in armed:
            _wait_for_stop(member)
        time.sleep(2 * lease)
        for member in armed:
            member.thaw()
            trial.count("zombies")
        trial.pause(1, 2)
        for member in armed:
            member.stop()
        _wait_until_nobody_is_suspect(trial)


def api_kills(trial: Trial) -> None:
    """Kill the web process between the commit of a run and its message; then gunicorn's worker and
    its master.
    """
    for _ in trial.rounds(3, 1):
        with trial.fault("one more web process comes and goes"):
            armed = trial.stack.start_web(f"transaction.committed:{trial.rng.randint(1, 5)}:KILL")
            _wait_for_death(armed)
            trial.count("API kills")
            trial.stack.web.remove(armed)
            armed.stop()
        for how in ("kill_child", "kill"):
            trial.pause(0.5, 1.5)
            _kill_web(trial, how)


def poison(trial: Trial) -> None:
    """Wait while the load's poisonous runs kill their worker each time."""
    wait_until(lambda: trial.load.accepted >= 40, REACHED_SECONDS, "enough runs")
    accepted = [entry for entry in trial.journal.entries if entry["kind"] == "accepted"]
    poisonous = {entry["run_id"] for entry in accepted if entry["expect"]["poison"]}
    if not poisonous:
        raise AssertionError("no run kills its worker")
    trial.count("poisonous runs", len(poisonous))


def web_kills(trial: Trial) -> None:
    """Send SIGKILL to gunicorn's worker, then to its master, while everybody follows."""
    for _ in trial.rounds(3, 1):
        for how in ("kill_child", "kill"):
            trial.pause(2, 3)
            _kill_web(trial, how)
    trial.notes["most streams open"] = trial.load.summary()["most_open_streams"]


def pairs(trial: Trial) -> None:
    """Inject two faults at once, at random."""
    faults = (_kill, _kill_web, _empty_redis, _restart_postgres)
    for _ in trial.rounds(5, 2):
        trial.pause(1, 3)
        first, second = trial.rng.sample(faults, 2)
        with trial.fault(f"{first.__name__} and {second.__name__}"):
            first(trial)
            second(trial)
        trial.count("pairs")
    trial.pause(2, 3)


def storm(trial: Trial) -> None:
    """Kill everything again and again, without any plan."""
    others = {3: _kill_web, 6: _empty_redis, 9: _restart_postgres}
    for number in range(25 if trial.short else 100):
        trial.pause(3, 4)
        _kill(trial)
        if number % 10 in others:
            others[number % 10](trial)
    trial.pause(2, 3)


def _kill(trial: Trial) -> None:
    worker = trial.rng.choice(trial.stack.workers)
    with trial.fault("worker killed", pid=worker.pid):
        worker.kill()
    trial.count("worker kills")


def _kill_web(trial: Trial, how: str = "kill") -> None:
    """`kill_child`: gunicorn's worker alone, whose master starts another."""
    victim = trial.rng.choice(trial.stack.web)
    with trial.fault("web killed", pid=victim.pid, how=how):
        getattr(victim, how)()
        time.sleep(0.2)  # until it is seen to be gone
        victim.wait_ready()
    trial.count("API kills")


def _empty_redis(trial: Trial) -> None:
    with trial.fault("redis restarted empty"):
        trial.stack.redis.restart_empty()
    trial.count("empty restarts of Redis")


def _restart_postgres(trial: Trial) -> None:
    with trial.fault("postgres stopped at once"):
        trial.stack.postgres.stop(immediate=True)
        trial.stack.postgres.start()
    trial.count("immediate stops of Postgres")


def _wait_for_death(member: Member, deaths: int = 0) -> None:
    wait_until(
        lambda: member.deaths > deaths,
        REACHED_SECONDS,
        f"{member.role} dies at {member.fault_point}",
    )


def _wait_until_nobody_is_suspect(trial: Trial) -> None:
    """Wait, since the next armed workers must not take a run that has lost one to these."""
    connections = trial.stack.connect()
    lost = text("SELECT 1 FROM runs WHERE state IN ('queued', 'executing') AND crashes > 0 LIMIT 1")

    def is_over() -> bool:
        with connections.reading() as sql:
            return sql.scalar(lost) is None

    try:
        wait_until(is_over, REACHED_SECONDS, "runs that have lost a worker end or wait")
    finally:
        connections.close()


def _wait_for_stop(member: Member) -> None:
    wait_until(
        lambda: member.is_frozen, REACHED_SECONDS, f"{member.role} stops at {member.fault_point}"
    )
