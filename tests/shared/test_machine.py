"""Defaults and limits that fit the machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arkloop.shared import machine
from arkloop.shared.config import Settings

LEAST = {
    "ARKLOOP_DATABASE_URL": "postgresql://db.example.com/runs",
    "ARKLOOP_REDIS_URL": "redis://redis.example.com",
    "ARKLOOP_JWT_SECRET": "j" * 32,
}


@pytest.mark.parametrize(
    ("quota", "at_most"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10_000), ("", 10_000)],
)
def test_a_containers_quota_counts(tmp_path: Path, quota: str, at_most: int) -> None:
    """Half a core is one; without a quota it is the cores that this process may use."""
    file = tmp_path / "cpu.max"
    file.write_text(quota)

    assert min(at_most, len(os.sched_getaffinity(0))) == machine.cores(file)


def test_a_web_process_has_no_more_workers_than_fit() -> None:
    """A single core has one, others two, unless the operator says otherwise."""
    cores = machine.cores()
    expected = min(cores, 2)

    assert expected == machine.default_web_processes()
    assert expected == Settings.from_env(LEAST).api_workers
    assert 7 == Settings.from_env({**LEAST, "ARKLOOP_API_WORKERS": "7"}).api_workers


@pytest.mark.parametrize(
    ("cores", "web", "workers"), [(1, 1, 1), (2, 2, 2), (4, 2, 2), (8, 4, 2), (16, 8, 4)]
)
def test_processes_fit_the_cores(cores: int, web: int, workers: int) -> None:
    """Web processes take half of them, workers a quarter; there are two of each, if it has two."""
    assert (web, workers) == (machine.web_processes(cores), machine.worker_processes(cores))


@pytest.mark.processes
@pytest.mark.parametrize("program", ["arkloop.api.gunicorn_conf", "arkloop.worker.app"])
def test_a_process_may_open_as_many_files_as_its_hard_limit_allows(program: str) -> None:
    """A shell's 1024 would be reached by a thousand streams."""
    code = f"import {program}, resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    limited = ["sh", "-c", 'ulimit -Sn 256 && ulimit -Hn && exec "$@"', "sh"]
    done = subprocess.run(
        [*limited, sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], **LEAST},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    most, soft, hard = done.stdout.split()
    assert (most, most) == (soft, hard)


def _lacks() -> None:
    raise MemoryError


def _replaces_it() -> None:
    try:
        _lacks()
    except MemoryError:
        raise ValueError from None


def _replaces_what_a_framework_made_of_it() -> None:
    try:
        try:
            _lacks()
        except MemoryError as lack:
            raise RuntimeError from lack
    except RuntimeError:
        raise ValueError from None


def _replaces_a_group_with_it() -> None:
    try:
        raise ExceptionGroup("tasks", [ValueError(), MemoryError()])
    except ExceptionGroup:
        raise ValueError from None


def _replaces_the_lack_of_another_attempt() -> None:
    try:
        _lacks()
    except MemoryError:
        try:
            _lacks()
        except MemoryError:
            raise ValueError from None


def _follows_it() -> None:
    try:
        _lacks()
    except MemoryError:
        raise ValueError  # noqa: B904  # its context is shown


def _replaces_an_error_of_its_cleanup() -> None:
    try:
        _lacks()
    finally:
        try:
            raise KeyError
        except KeyError:
            raise RuntimeError from None


@pytest.mark.parametrize(
    ("code", "is_lasting"),
    [
        (_replaces_it, False),
        (_replaces_what_a_framework_made_of_it, False),
        (_replaces_a_group_with_it, False),
        (_replaces_the_lack_of_another_attempt, False),
        (_lacks, True),
        (_follows_it, True),
        (_replaces_an_error_of_its_cleanup, True),
    ],
)
def test_a_lack_of_memory_is_handled_by_an_error_that_replaces_it(
    code: Callable[[], None], is_lasting: bool
) -> None:
    """An error `from None` that follows a failure of the cleanup has handled that failure alone."""
    try:
        code()
    except Exception as error:
        found = machine.lasting_shortage(error)

    assert is_lasting == isinstance(found, MemoryError)
