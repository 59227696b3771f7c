"""The same agent with three tools in several programs: what each loses by kill -9 and a cancel.

    .venv/bin/python -m bench.frameworks [--rounds 3]

The programs are the built-in loop, three frameworks behind `arkloop agents serve`, and LangGraph's
own development server. The process that carries out a run is killed in the tool that may be called
once, after its effect, and within the answer; LangGraph's server also after it has saved its state,
which it does every 10 seconds. Exit status 1: a program behind the service has other events than
the built-in loop, lost a run or events, or repeated an effect.
"""

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.frameworks import dev_server
from bench.frameworks.chat_server import ChatServer
from bench.frameworks.programs import (
    FRAMEWORKS,
    InService,
    LangGraphServer,
    Outcome,
    Program,
)
from bench.frameworks.same_events import Shown
from bench.service import ROOT, Service

AGENTS = ("langgraph_shop", "openai_shop", "pydantic_ai_shop")
SCENES = ("undisturbed", "killed in the tool", "killed in the answer", "cancelled in the answer")
#: LangGraph's server saves its state every 10 seconds.
SAVED_SECONDS = 13.0
SETTLE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Play:
    """A scene with one program; `effects` is how often the order was cancelled."""

    program: str
    scene: str
    outcome: Outcome
    effects: int
    model_calls: int
    seconds: float

    @property
    def lost(self) -> str:
        """Return what was lost, in words."""
        wanted = "cancelled" if "cancelled" in self.scene else "completed"
        status = {"success": "completed", "interrupted": "cancelled"}.get(
            self.outcome.status or "", self.outcome.status
        )
        found = []
        if status is None:
            found.append("the run and its thread")
        elif status != wanted:
            found.append(f"the run is {status}")
        if (missing := self.outcome.seen - self.outcome.replayed) > 0:
            found.append(f"{missing} of {self.outcome.seen} events")
        if self.effects != 1:
            found.append(f"the effect came {self.effects} times")
        return "; ".join(found) or "nothing"


class Stage:
    """The shop and its model, and the moments at which a scene disturbs a run."""

    def __init__(self, folder: Path, model: ChatServer) -> None:
        self._cancelled, self._pause = folder / "cancelled", folder / "pause"
        self._model = model
        self.environ = {
            "SHOP_CANCELLED": str(self._cancelled),
            "SHOP_PAUSE": str(self._pause),
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "sk-of-nobody",
        }

    def play(self, program: Program, scene: str, *, settle: float = SETTLE_SECONDS) -> Play:
        """Play a scene."""
        self._cancelled.unlink(missing_ok=True)
        calls, began = len(self._model.bodies), time.monotonic()
        if "tool" in scene:
            self._pause.touch()
        elif "answer" in scene:
            self._model.is_slow.set()
        program.begin()
        if scene != "undisturbed":
            _until(lambda: self._cancelled.exists() and self._cancelled.read_text() != "")
            if "answer" in scene:
                _until(lambda: len(self._model.bodies) >= calls + 3)
            time.sleep(settle)
        if "killed" in scene:
            program.kill()
            self._let_go()
            program.replace()
        elif "cancelled" in scene:
            program.cancel()
        outcome = program.outcome()
        self._let_go()
        effects = self._cancelled.read_text().count("A1")
        return Play(
            program=program.name,
            scene=scene,
            outcome=outcome,
            effects=effects,
            model_calls=len(self._model.bodies) - calls,
            seconds=time.monotonic() - began,
        )

    def _let_go(self) -> None:
        self._pause.unlink(missing_ok=True)
        self._model.is_slow.clear()


def main() -> int:
    options = _options()
    plays: list[Play] = []
    with (
        ChatServer() as model,
        tempfile.TemporaryDirectory(prefix="arkloop-frameworks-") as folder,
    ):
        stage = Stage(Path(folder), model)
        routes = Path(folder, "routes.yaml")
        prices = "context_tokens: 128000, prices: {input: 0, output: 0}"
        how = f"provider: openai, model: m, base_url: {model.url!r}, {prices}"
        routes.write_text(f"routes:\n  - {{id: shop, {how}}}\n")
        environ = {
            **stage.environ,
            "ARKLOOP_ROUTES": str(routes),
            "ARKLOOP_ENCRYPTION_KEY": secrets.token_hex(32),
            "ARKLOOP_PLUGINS": str(ROOT / "bench" / "frameworks" / "plugins"),
        }
        with Service(environ=environ) as service:
            for agent in (None, *AGENTS):
                plays += _plays(InService(service, stage.environ, agent), stage, options.rounds)
        if dev_server.is_installed():
            plays += _plays_of_server(Path(folder), stage, options.rounds)
        else:
            print("no server of LangGraph: `make agent-frameworks` installs it")
    return _report(plays)


def _plays(
    program: Program, stage: Stage, rounds: int, scenes: tuple[str, ...] = SCENES, **how: float
) -> list[Play]:
    plays: list[Play] = []
    try:
        for scene in scenes * rounds:
            play = stage.play(program, scene, **how)
            print(f"{play.program}, {scene}: lost {play.lost}; {play.seconds:.1f} s", flush=True)
            plays.append(play)
        return plays
    finally:
        program.close()


def _plays_of_server(folder: Path, stage: Stage, rounds: int) -> list[Play]:
    program = LangGraphServer(folder, stage.environ)
    plays = _plays(program, stage, rounds)
    saved = LangGraphServer(folder, stage.environ)
    saved.name = f"{saved.name}, after {SAVED_SECONDS:.0f} s"
    killed = tuple(scene for scene in SCENES if "killed" in scene)
    return plays + _plays(saved, stage, rounds, killed, settle=SAVED_SECONDS)


def _report(plays: Sequence[Play]) -> int:
    expected: dict[str, list[Shown]] = {}
    faults = 0
    rows: dict[tuple[str, str], Counter[str]] = {}
    for play in plays:
        first = expected.setdefault(play.scene, play.outcome.events)
        is_ours = bool(play.outcome.events)
        is_same = not is_ours or play.outcome.events == first
        if not is_same:
            print(f"{play.program}, {play.scene}: other events than the built-in loop's:")
            for one in play.outcome.events:
                print("   ", "" if one in first else "!", one)
            for one in first:
                if one not in play.outcome.events:
                    print("    missing:", one)
        faults += is_ours and (not is_same or play.lost != "nothing")
        events = ("same events" if is_same else "OTHER EVENTS") if is_ours else "its own protocol"
        described = f"{events}; lost: {play.lost}; {play.model_calls} model calls"
        rows.setdefault((play.program, play.scene), Counter())[described] += 1
    for (program, scene), found in rows.items():
        for described, count in found.items():
            print(f"| {program} | {scene} | {count} | {described} |")
    print(f"{len(plays)} plays, {faults} with faults")
    return int(faults > 0)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError("the scene did not get there")
        time.sleep(0.02)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    assert FRAMEWORKS.exists(), "no frameworks: `make agent-frameworks` installs them"
    sys.exit(main())
