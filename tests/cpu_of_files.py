"""CPU seconds of each file of tests, in all its processes: `make test TESTS=--cpu` prints them.

Unlike the time that passes, they are the same on a busy machine. What a server or a service that
several files share does at the time counts for the file whose tests run.
"""

import sys
from collections import Counter, defaultdict
from typing import Any

import psutil
import pytest

LINES = 40


class CpuOfFiles:
    """A plugin that adds up the CPU seconds of files, and counts the commands they start."""

    def __init__(self, config: pytest.Config) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.commands: Counter[str] = Counter()
        self._config = config
        self._process = psutil.Process()
        self._file = ""
        self._before = 0.0
        sys.addaudithook(self._count)

    def _count(self, event: str, _args: Any) -> None:
        if event == "subprocess.Popen" and self._file:
            self.commands[self._file] += 1

    def _enter(self, file: str) -> None:
        if file != self._file:
            now = seconds_of(self._process)
            if self._file:
                self.seconds[self._file] += now - self._before
            self._file, self._before = file, now

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._enter(str(item.path.relative_to(self._config.rootpath)))

    def pytest_sessionfinish(self) -> None:
        """Finish the last file; a process of pytest-xdist sends its sums to the one that prints."""
        self._enter("")
        if hasattr(self._config, "workeroutput"):
            sums = [dict(self.seconds), dict(self.commands)]
            self._config.workeroutput["cpu_of_files"] = sums

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        seconds, commands = getattr(node, "workeroutput", {}).get("cpu_of_files", ({}, {}))
        for file, took in seconds.items():
            self.seconds[file] += took
        self.commands.update(commands)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the sums, and the files that took most."""
        terminalreporter.section("CPU seconds, commands started")
        sums = (sum(self.seconds.values()), self.commands.total(), f"{len(self.seconds)} files")
        for seconds, commands, file in [sums, *self._rows()]:
            terminalreporter.write_line(f"{seconds:8.1f} {commands:5}  {file}")

    def _rows(self) -> list[tuple[float, int, str]]:
        most = sorted(self.seconds.items(), key=lambda row: -row[1])[:LINES]
        return [(seconds, self.commands[file], file) for file, seconds in most]


def seconds_of(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, its living descendants, and all that have ended."""
    found = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            found += sum(one.cpu_times()[:4])
        except psutil.Error:  # it has ended meanwhile: what it took is its parent's now
            continue
    return found
