"""The end of an attempt, and the outcome that is recorded for it."""

import errno
import logging

import pytest

from arkloop.shared.catalog import personas
from arkloop.shared.errors import Unavailable
from arkloop.shared.events.types import RunError
from arkloop.shared.ids import new_id
from arkloop.worker.attempt.outcome import (
    Cancelled,
    Failed,
    HandedOff,
    Outcome,
    Waiting,
    outcome_of,
)
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    DeadlineExceeded,
    LimitExceeded,
    ProviderError,
    ShuttingDown,
    WaitForInput,
)

USER = new_id()
QUESTION = WaitForInput(
    persona=personas.builtin()["plain@1"], kind="question", prompt="Which?", tool_call_id="c"
)
OVERLOADED = ProviderError("overloaded", "Try later.")
TOO_MANY = LimitExceeded("run.max_steps", "The limit is 3 steps.")


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (QUESTION, Waiting(QUESTION)),
        (ShuttingDown(), HandedOff()),
        (CancelRequested(USER), Cancelled(USER)),
        (CancelRequested(), Cancelled()),
        (
            DeadlineExceeded(300.0),
            Failed(RunError("run.timeout", "The run took longer than 300 s.", True)),
        ),
        (
            OVERLOADED,
            Failed(RunError("provider.overloaded", "Try later.", True), OVERLOADED),
        ),
        (TOO_MANY, Failed(RunError("run.max_steps", "The limit is 3 steps.", False), TOO_MANY)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_reason_to_stop_has_an_outcome(reason: BaseException, outcome: Outcome) -> None:
    """A stop is no failure, and a failure keeps its code, its text and whether to retry."""
    assert outcome == outcome_of(reason)


def test_an_outage_is_no_outcome() -> None:
    """The run is abandoned, and recovered when Postgres is back."""
    with pytest.raises(Unavailable):
        outcome_of(Unavailable())


def test_no_memory_is_no_outcome() -> None:
    """Another process may have some."""
    with pytest.raises(MemoryError):
        outcome_of(MemoryError())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_file_descriptor_is_no_outcome(number: int) -> None:
    """Another process may have one; the run itself has not crashed."""
    with pytest.raises(Unavailable) as caught:
        outcome_of(OSError(number, "none is left"))

    assert "none is left" in str(caught.value.__cause__)
    assert isinstance(outcome_of(OSError(errno.ENOENT, "no such file")), Failed)


@pytest.mark.parametrize("lack", [MemoryError(), OSError(errno.EMFILE, "none is left")])
def test_a_shortage_behind_another_error_is_no_outcome(lack: Exception) -> None:
    """A framework may wrap it, in a group too, or in errors that lead to each other."""
    first, second = RuntimeError("of a framework"), RuntimeError("of another")
    first.__cause__, second.__cause__ = second, first
    assert isinstance(outcome_of(first), Failed)

    first.__context__ = ExceptionGroup("of tasks", [ValueError("late"), lack])
    with pytest.raises((MemoryError, Unavailable)):
        outcome_of(second)


def test_the_text_of_an_internal_error_is_in_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run's owner reads a fixed sentence."""
    outcome = outcome_of(ValueError("a secret"))

    assert isinstance(outcome, Failed)
    assert ("worker.crashed", True) == (outcome.error.code, outcome.error.retryable)
    assert "secret" not in outcome.error.message
    [line] = caplog.records
    assert logging.ERROR == line.levelno
    assert line.exc_info is not None and "a secret" in str(line.exc_info[1])
