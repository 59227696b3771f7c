"""Findings of `arkloop doctor`: what was looked at, how it is, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The level of a finding."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well as it should, or not for long
    FAIL = "fail"  # requests or runs suffer now, or will with the next start


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report; `advice` is empty where there is nothing to do.

    Neither text may repeat a password, a key or the value of a setting that is secret.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    """Return a finding that needs no attention."""
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, advice: str) -> Finding:
    """Return a finding to look into before it gets worse."""
    return Finding(check, Level.WARN, text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    """Return a finding that makes the command exit with status 1."""
    return Finding(check, Level.FAIL, text, advice)


def worst(findings: Sequence[Finding]) -> Level:
    """Return the level of the worst finding, `OK` for none."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)
