"""Every mutant still fits the code; that each is caught is what `chaos` itself shows."""

import ast
import filecmp
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chaos.mutation import __main__ as mutation
from chaos.mutation import playing
from chaos.mutation.mutants import MUTANTS, by_scenario
from chaos.mutation.planting import DoesNotApply, Edit, Mutant, mutated, plant
from chaos.mutation.scenarios import SCENARIOS
from chaos.system.member import NotInTime
from chaos.trial import Outcome, Scenario
from chaos.verdict.violations import INVARIANTS, Violation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_to_the_code(mutant: Mutant) -> None:
    """Each text is in the code once, and the program that results is another one and compiles."""
    for file, text in mutated(mutant, ROOT).items():
        original = (ROOT / file).read_text(encoding="utf-8")
        if file.endswith(".sql"):
            assert _without_comments(original) != _without_comments(text)
            continue
        assert ast.dump(ast.parse(original)) != ast.dump(ast.parse(text))
        compile(text, file, "exec")


def _without_comments(sql: str) -> list[str]:
    return [line for line in sql.splitlines() if not line.lstrip().startswith("--")]


def test_mutants_are_told_apart_and_caught_by_what_is_checked() -> None:
    """Names are unique; scenarios and invariants of the checker are those that there are."""
    assert {1} == set(Counter(mutant.name for mutant in MUTANTS).values())
    assert set() == {name for mutant in MUTANTS for name in mutant.caught_by} - INVARIANTS.keys()
    assert {scenario.name for scenario in SCENARIOS} == by_scenario().keys()
    assert len(MUTANTS) == sum(map(len, by_scenario().values()))


def test_a_planted_mutant_differs_in_its_edits_alone(tmp_path: Path) -> None:
    """The copy is the service, but for the files that are broken on purpose."""
    mutant = MUTANTS[0]
    planted = plant(mutant, ROOT, tmp_path / "planted")

    files = [path.relative_to(planted) for path in planted.rglob("*") if path.is_file()]
    differ = {
        str(path) for path in files if not filecmp.cmp(ROOT / path, planted / path, shallow=False)
    }

    assert {edit.file for edit in mutant.edits} == differ
    assert {Path("Procfile"), Path("worker/app.py"), Path("api/gunicorn_conf.py")} <= {*files}


def test_a_mutant_of_changed_code_says_so(tmp_path: Path) -> None:
    """A guard that has moved must not make a mutant that breaks nothing."""
    lost = Mutant("lost", "plain", frozenset(), (Edit("Procfile", "no such line", ""),))

    with pytest.raises(DoesNotApply):
        plant(lost, ROOT, tmp_path / "planted")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("unbroken", "broken", "word"),
    [
        ((), ("I9",), "CAUGHT"),
        ((), ("A1", "I9"), "CAUGHT"),
        ((), ("A1",), "MISSED"),
        ((), (), "MISSED"),
        (("I9",), ("I9",), "MISSED"),
    ],
)
def test_a_mutant_is_caught_by_what_the_unbroken_code_does_not_show(
    unbroken: tuple[str, ...],
    broken: tuple[str, ...],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mutant counts as caught by its own invariants alone, and only if the unbroken code is
    clean.
    """
    shown = {"code": unbroken, "source": broken}
    no_ledger = Mutant("no ledger", "plain", frozenset({"I9"}), MUTANTS[0].edits)

    def play(scenario: Scenario, seed: int, folder: Path, *, source: Path, **_: Any) -> Outcome:
        violations = [Violation(invariant, None, "seen") for invariant in shown[source.name]]
        return Outcome(
            scenario=scenario.name,
            seed=seed,
            seconds=0,
            violations=violations,
            summary={},
            notes={},
            folder=folder,
        )

    monkeypatch.setattr(playing, "play", play)

    with ThreadPoolExecutor(1) as pool:
        clean, verdict = mutation.run([no_ledger], pool, tmp_path, seed=1)

    assert ("NOT CLEAN" if unbroken else "CLEAN") == clean.word
    assert word == verdict.word


def test_what_cannot_be_played_is_not_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack that does not start says nothing about the checker."""

    def play(*_: Any, **__: Any) -> None:
        raise NotInTime("worker is ready: not within 60 s")

    monkeypatch.setattr(playing, "play", play)

    with ThreadPoolExecutor(1) as pool:
        verdicts = list(mutation.run(MUTANTS[:1], pool, tmp_path, seed=1))

    assert ["NOT CLEAN", "MISSED"] == [verdict.word for verdict in verdicts]
