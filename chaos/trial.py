"""A trial of one scenario against one system: start it, load it, break it, and check what the
clients saw.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import journal as journals
from chaos.clients.load import Load
from chaos.clients.plans import WEIGHTS
from chaos.journal import Journal
from chaos.system.small_disk import small_disk
from chaos.system.stack import QUICK, ROOT, Stack
from chaos.verdict.checker import Allow, Violation, check


@dataclass(frozen=True, kw_only=True)
class Patience:
    """The time, in seconds, that clients wait for a response, for the end of their runs, and for it
    once more in the last look.
    """

    answer: float = 180.0
    join: float = 120.0
    end: float = 60.0


PATIENT = Patience()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A kind of trouble; `inject` makes it while the load runs, and returns when it is over.

    `rows` are those of the fault matrix that it stands for.
    """

    name: str
    rows: str
    about: str
    inject: Callable[["Trial"], None]
    allow: Allow = field(default_factory=Allow)
    workers: int = 2
    web: int = 2
    pace: Mapping[str, str] = field(default_factory=lambda: QUICK)
    environ: Mapping[str, str] = field(default_factory=dict)
    persist_redis: bool = True
    separate_broker: bool = False
    concurrency: int = 20
    followers: int = 2
    kinds: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    first: Sequence[str] = ()  # the kinds of the first runs
    in_short_cut: bool = False  # CI plays it
    disk_megabytes: int | None = None  # Postgres has a disk of its own, of this size
    needs: Callable[[], str | None] = lambda: None  # what this machine lacks for it


@dataclass
class Trial:
    """The reach of a scenario. `seed` decides all that is random in it."""

    stack: Stack
    journal: Journal
    load: Load
    rng: random.Random
    short: bool  # fewer rounds
    notes: dict[str, Any] = field(default_factory=dict)

    def rounds(self, many: int, few: int) -> range:
        """Return how often to do it: `few` times in a short trial."""
        return range(few if self.short else many)

    def pause(self, least: float, most: float) -> None:
        """Let the load run for a random time, in seconds."""
        time.sleep(self.rng.uniform(least, most))

    @contextmanager
    def fault(self, name: str, **details: Any) -> Iterator[None]:
        """Record what is broken in this block, and mended at its end."""
        with self.journal.fault(name, **details):
            yield

    def count(self, what: str, number: int = 1) -> None:
        """Add to the notes of the outcome."""
        self.notes[what] = self.notes.get(what, 0) + number


@dataclass(frozen=True, kw_only=True)
class Outcome:
    scenario: str
    seed: int
    seconds: float
    violations: list[Violation]
    summary: dict[str, Any]
    notes: dict[str, Any]
    folder: Path


def play(
    scenario: Scenario,
    seed: int,
    folder: Path,
    *,
    source: Path = ROOT,
    short: bool = False,
    patience: Patience = PATIENT,
) -> Outcome:
    """Start a system from `source`, play the scenario on it, and check the journal.

    The folder keeps the journal and the log of every process.
    """
    began = time.monotonic()
    folder.mkdir(parents=True)
    path = folder / "journal.jsonl"
    journal = Journal(path)
    disk = folder / "disk"
    stack = Stack(
        folder / "stack",
        journal,
        workers=scenario.workers,
        web=scenario.web,
        pace=scenario.pace,
        source=source,
        environ=scenario.environ,
        persist_redis=scenario.persist_redis,
        separate_broker=scenario.separate_broker,
        postgres_folder=disk if scenario.disk_megabytes is not None else None,
    )
    problems: list[Violation] = []
    with ExitStack() as around:
        if scenario.disk_megabytes is not None:
            around.enter_context(small_disk(disk, scenario.disk_megabytes))
        around.enter_context(stack)
        load = Load(
            lambda: stack.urls,
            stack.api_key("a"),
            journal,
            seed=seed,
            sink=folder / "sink",
            runs=None,
            concurrency=scenario.concurrency,
            kinds=scenario.kinds,
            first=scenario.first,
            patience=patience.answer,
            followers=scenario.followers,
        )
        trial = Trial(stack, journal, load, random.Random(f"{scenario.name}:{seed}"), short)
        load.start()
        try:
            scenario.inject(trial)
        except Exception as error:
            problems.append(Violation("NV", None, f"the scenario broke off: {error!r}"))
        load.stop_creating()
        if not load.join(patience.join):
            problems.append(Violation("I5", None, "clients wait for the end of their runs"))
        load.finish(deadline=patience.end, other_token=stack.api_key("b"))
    problems += check(journals.read(path), allow=scenario.allow)
    return Outcome(
        scenario=scenario.name,
        seed=seed,
        seconds=time.monotonic() - began,
        violations=problems,
        summary=load.summary(),
        notes=trial.notes,
        folder=folder,
    )
