"""Core dumps of the service's own processes."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.system import System
from tests.waiting import eventually, is_alive

pytestmark = pytest.mark.processes

PATTERN = Path("/proc/sys/kernel/core_pattern")


def processes(system: System, web: int) -> Iterator[psutil.Process]:
    """List the master and its worker, and Celery's."""
    yield psutil.Process(web)
    yield from psutil.Process(web).children()
    yield psutil.Process(system.worker.pid)


def test_no_process_of_the_service_may_dump(system: System) -> None:
    """Neither may what they start: the limit is inherited, and only root raises it."""
    with system.one_more_web_server() as server:
        found = [(p.name(), p.rlimit(resource.RLIMIT_CORE)) for p in processes(system, server.pid)]

    assert len(found) >= 3
    assert [] == [(name, limits) for name, limits in found if limits != (0, 0)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root raises the limit again")
@pytest.mark.parametrize("allows", ["0", "1"])
def test_a_web_process_that_crashes_leaves_what_the_operator_allows(
    system: System, allows: str
) -> None:
    """Without the setting there is no dump even where the limit does not keep the kernel from it,
    as where it hands dumps to a collector.
    """
    if PATTERN.read_text().strip() != "core":
        pytest.skip("this machine writes dumps elsewhere")
    with system.one_more_web_server(ARKLOOP_CORE_DUMPS=allows) as server:
        [process] = psutil.Process(server.pid).children()
        folder = Path(process.cwd())
        with suppress(psutil.AccessDenied):  # root without this capability
            process.rlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
        before = {*folder.glob("core*")}
        process.send_signal(signal.SIGSEGV)
        eventually(lambda: not is_alive(process))
        dumps = {*folder.glob("core*")} - before
        for dump in dumps:
            dump.unlink()

    assert int(allows) == len(dumps)
