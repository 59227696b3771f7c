"""A plugin that lets tests which failed run once more, alone: `-p tests.second_try --second-try 2`.

It is for CI: decision 87 says why. By hand, every failure counts.
"""

import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--second-try",
        type=int,
        default=0,
        metavar="COUNT",
        help="run failed tests once more after all others, if these are at most COUNT",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests in the process that reports them."""
    most = config.getoption("second_try")
    if most and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_SecondTry(most))


def _pass(tests: Sequence[str], folder: Path) -> int:
    """Run these tests; return the status of pytest, or that of failed tests if one was skipped."""
    with tempfile.TemporaryDirectory() as reports:
        report = Path(reports, "report.xml")
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *tests]
        status = subprocess.run(command, cwd=folder).returncode
        if status == pytest.ExitCode.OK and "<skipped" in report.read_text():
            return pytest.ExitCode.TESTS_FAILED
    return status


class _SecondTry:
    """A watch over a session: which tests failed, and whether all others have run."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._failed: dict[str, None] = {}
        self._is_whole = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # a file that cannot be loaded has tests that were not run
            self._is_whole = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self) -> None:
        """Remember that tests which the crashed process had before it were not run."""
        self._is_whole = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, Any, Any]:
        """Run the failed tests after the summary; let the session pass if they do."""
        result = yield
        tests = [*self._failed]
        is_failed = exitstatus == pytest.ExitCode.TESTS_FAILED and self._is_whole
        if is_failed and 0 < len(tests) <= self._most:
            print(f"\nA second try, alone: {', '.join(tests)}", flush=True)
            session.exitstatus = _pass(tests, session.config.rootpath)
        return result
