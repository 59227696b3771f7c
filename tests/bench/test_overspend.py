"""The trials of `python -m bench.overspend` in short, and that they can fail."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arkloop.shared.billing import budgets
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections, connect
from bench.overspend.__main__ import PATIENT
from bench.overspend.agent_trial import AgentTrial
from bench.overspend.org import Org
from bench.overspend.trial import Reserve, Trial, look_then_take
from bench.overspend.verdict import Verdict

SPENDERS = 64


@pytest.fixture(scope="module")
def database(settings: Settings) -> Iterator[Connections]:
    """Connections for each spender; no process listens for notifications by Redis."""
    own = replace(settings, database_pool_size=SPENDERS + 8, lease_seconds=300)
    opened = connect(
        own,
        application="overspend",
        timeouts=PATIENT,
        send=lambda _connections, _notification: None,
    )
    yield opened
    opened.close()


def trial(database: Connections, seed: int, reserve: Reserve = budgets.reserve) -> Verdict:
    return Trial(database, spenders=SPENDERS, seed=seed, reserve=reserve).run()


@pytest.mark.parametrize("seed", range(2))
def test_sixty_four_spenders_never_overspend_together(database: Connections, seed: int) -> None:
    """Whichever of them are lost, and when; and the books are right to the last digit."""
    verdict = trial(database, seed)

    assert (0, []) == (verdict.overspent_usd, verdict.faults)
    assert SPENDERS == verdict.runs
    assert verdict.spent_usd > 0


def test_a_run_and_twenty_sub_runs_never_overspend_its_limit(database: Connections) -> None:
    """They overspend no other limit either, whichever of them are lost; and all books are right."""
    verdict = Trial(database, spenders=21, seed=1, make=Org.make_tree).run()

    assert (0, [], 21) == (verdict.overspent_usd, verdict.faults, verdict.runs)
    assert verdict.spent_usd > 0


def test_agents_and_their_sub_runs_never_overspend_a_limit(database: Connections) -> None:
    """Agents report what they have spent; the built-in loop below them spends, too."""
    verdict = AgentTrial(database, spenders=21, seed=1).run()

    assert (0, [], 21) == (verdict.overspent_usd, verdict.faults, verdict.runs)
    assert verdict.spent_usd > 0


def test_a_look_without_a_lock_overspends(database: Connections) -> None:
    """The trials notice it: they can fail."""
    assert any(trial(database, seed, look_then_take).overspent_usd > 0 for seed in range(5))
