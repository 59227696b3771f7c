"""The faults of Postgres, of Redis, of the network before them, and of clocks."""

import sysconfig
import time
from pathlib import Path

from sqlalchemy import create_engine, text

from chaos.system import small_disk
from chaos.system.fault_proxy import FaultProxy
from chaos.trial import Trial

_LIBRARIES = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "")
FAKETIME = _LIBRARIES / "faketime" / "libfaketimeMT.so.1"


def redis_empty(trial: Trial) -> None:
    for _ in trial.rounds(5, 2):
        trial.pause(0.5, 2)
        with trial.fault("redis restarted empty"):
            trial.stack.redis.restart_empty()
        trial.count("empty restarts")
    trial.pause(2, 3)


def redis_flush(trial: Trial) -> None:
    client = trial.stack.redis_client()
    for _ in trial.rounds(12, 4):
        trial.pause(0.2, 1)
        with trial.fault("redis flushed"):
            match trial.rng.randrange(3):
                case 0:
                    client.flushall()
                case 1:
                    for key in client.scan_iter("*:run:*"):
                        client.delete(key)
                case _:
                    client.client_kill_filter(_type="pubsub")
        trial.count("flushes")
    trial.pause(1, 2)


def redis_killed(trial: Trial) -> None:
    """Kill Redis, which returns with what it had written to its file."""
    for _ in trial.rounds(5, 2):
        trial.pause(0.5, 2)
        with trial.fault("redis killed"):
            trial.stack.redis.kill()
            trial.pause(0, 2)
            trial.stack.redis.start()
        trial.count("restarts")
    trial.pause(2, 3)


def redis_from_an_old_copy(trial: Trial) -> None:
    trial.pause(1, 2)
    copy = trial.stack.redis.copy()
    for _ in trial.rounds(3, 1):
        trial.pause(2, 3)
        with trial.fault("redis went back in time"):
            trial.stack.redis.travel_back(copy)
        trial.count("travels")
    trial.pause(2, 3)


def redis_silent(trial: Trial) -> None:
    """Freeze Redis, then put it behind a network that swallows everything."""
    seconds = 6 if trial.short else 12
    with trial.fault("redis frozen"):
        trial.stack.redis.freeze()
        time.sleep(seconds)
        trial.stack.redis.thaw()
    trial.pause(2, 3)
    with trial.fault("redis unreachable"):
        trial.stack.redis_proxy.stall()
        time.sleep(seconds)
        trial.stack.redis_proxy.pass_on()
    trial.pause(2, 3)


def redis_refused(trial: Trial) -> None:
    """Refuse connections to Redis for a minute each time; the second time a worker is restarted."""
    _refused(trial, trial.stack.redis_proxy, "redis")


def broker_refused(trial: Trial) -> None:
    """Refuse connections to the broker, while the other Redis works."""
    _refused(trial, trial.stack.broker_proxy, "broker")


def _refused(trial: Trial, proxy: FaultProxy, name: str) -> None:
    seconds = 6 if trial.short else 60
    for restarts in (False, True):
        trial.pause(1, 2)
        with trial.fault(f"{name} refuses", restarts=restarts):
            proxy.refuse()
            time.sleep(seconds / 2)
            if restarts:
                trial.stack.workers[0].terminate()
            time.sleep(seconds / 2)
            proxy.pass_on()
        trial.count("refusals")
    trial.pause(2, 3)


def redis_full(trial: Trial) -> None:
    with trial.fault("redis out of memory"):
        trial.stack.redis.config_set(maxmemory="1mb")
        trial.pause(5, 8)
        trial.stack.redis.config_set(maxmemory="0")
    trial.pause(1, 2)


def postgres_immediate(trial: Trial) -> None:
    for _ in trial.rounds(5, 2):
        trial.pause(1, 3)
        with trial.fault("postgres stopped at once"):
            trial.stack.postgres.stop(immediate=True)
            trial.pause(0, 0.5)
            trial.stack.postgres.start()
        trial.count("immediate stops")
    trial.pause(2, 3)


def postgres_gone(trial: Trial) -> None:
    """Stop Postgres, then freeze it, then put it behind a network that swallows everything."""
    seconds = 4 if trial.short else 30
    postgres = trial.stack.postgres
    with trial.fault("postgres stopped"):
        postgres.stop()
        time.sleep(seconds)
        postgres.start()
    trial.pause(3, 5)
    seconds = min(seconds, 15)
    with trial.fault("postgres frozen"):
        postgres.freeze()
        time.sleep(seconds)
        postgres.thaw()
    trial.pause(3, 5)
    with trial.fault("postgres unreachable"):
        trial.stack.postgres_proxy.stall()
        time.sleep(seconds)
        trial.stack.postgres_proxy.pass_on()
    trial.pause(3, 5)


def lost_answers(trial: Trial) -> None:
    """Cut connections so that COMMITs are executed and their responses are lost."""
    for _ in trial.rounds(12, 6):
        trial.pause(0.3, 1)
        with trial.fault("answers to COMMIT cut"):
            trial.stack.postgres_proxy.cut_answer_to(b"COMMIT", times=trial.rng.randint(1, 5))
            time.sleep(0.2)
            trial.stack.postgres_proxy.pass_on()
        trial.count("cuts")
    trial.notes["answers cut"] = trial.stack.postgres_proxy.state()["answers_cut"]


def locked_tables(trial: Trial) -> None:
    """Hold a lock that all connections of small pools wait for."""
    engine = create_engine(trial.stack.postgres.url)
    for _ in trial.rounds(4, 2):
        trial.pause(0.5, 1.5)
        table = trial.rng.choice(("messages", "runs", "run_events", "threads"))
        with trial.fault("table locked", table=table):
            with engine.begin() as sql:
                sql.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
                time.sleep(trial.rng.uniform(1, 4))
        trial.count("locks")
    engine.dispose()
    trial.pause(1, 2)


def sessions_ended(trial: Trial) -> None:
    for _ in trial.rounds(12, 5):
        trial.pause(0.2, 1)
        with trial.fault("sessions of postgres ended"):
            trial.count("sessions", trial.stack.postgres.terminate_backends())


def connections_cut(trial: Trial) -> None:
    """Break the network between the parts: slow, cut after some bytes, half open, forgotten."""
    for _ in trial.rounds(8, 3):
        proxy = trial.rng.choice((trial.stack.postgres_proxy, trial.stack.redis_proxy))
        how = trial.rng.randrange(5)
        trial.pause(0.3, 1)
        with trial.fault("network", how=how):
            match how:
                case 0:
                    proxy.delay(trial.rng.uniform(0.01, 0.1))
                case 1:
                    proxy.cut(trial.rng.randint(1, 5000))
                case 2:
                    proxy.half_open()
                case 3:
                    proxy.abandon()
                case _:
                    proxy.cut_now()
            trial.pause(0.5, 2)
            proxy.pass_on()
        trial.count("faults")
    trial.pause(1, 2)


def expired_streams(trial: Trial) -> None:
    """Delete each stream in Redis within a moment, or its first half."""
    client = trial.stack.redis_client()
    for _ in trial.rounds(30, 10):
        time.sleep(0.2)
        for key in client.scan_iter("*:run:*:events"):
            if trial.rng.random() < 0.5:
                client.xtrim(key, maxlen=3, approximate=False)
            else:
                client.pexpire(key, 1)
            trial.count("streams")


def disk_full(trial: Trial) -> None:
    """Fill the disk of Postgres, which may stop, and is started again when there is space."""
    disk = trial.stack.postgres_folder
    for _ in trial.rounds(3, 1):
        trial.pause(2, 3)
        with trial.fault("disk of postgres full"):
            with small_disk.full(disk):
                trial.pause(2, 4)
            if trial.stack.postgres.pid is None:
                trial.stack.postgres.start()
                trial.count("restarts of Postgres")
        trial.count("full disks")
    trial.pause(3, 4)


def wrong_clocks(trial: Trial) -> None:
    """Start processes whose clocks are an hour ahead or behind, next to the others."""
    with trial.fault("more processes come"):
        for offset in ("+1h", "-1h"):
            # The clock that a machine counts from its start is right whatever the time of day.
            clock = {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": offset,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
            trial.stack.start_worker(environ=clock)
            trial.stack.start_web(environ=clock)
        trial.stack.wait_ready()
    trial.pause(8, 10)
    trial.count("processes with a wrong clock", 4)


def lacks_faketime() -> str | None:
    """Return why clocks cannot be set here, None if they can."""
    return None if FAKETIME.exists() else "the package libfaketime is not installed"
