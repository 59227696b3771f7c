"""Processes are reloaded when a file of a plugin changes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from arkloop.cli.dev.plugin_watch import PluginWatch
from tests.waiting import eventually

pytestmark = pytest.mark.processes

SUPERVISOR = """
import signal, sys
from arkloop.cli.dev import plugin_watch
from arkloop.cli.dev.guard import guarded
from arkloop.cli.dev.prefixed_output import PrefixedOutput
from arkloop.cli.dev.supervisor import Process, Supervisor

READ = "import sys, time; print('read', open(sys.argv[1]).read()); time.sleep(1000)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n" + READ
FAILS_ONCE = "import sys\\nif 'bad' in open(sys.argv[1]).read(): sys.exit(1)\\n"
HEARS = '''
import signal, sys, time
signal.signal(signal.SIGHUP, lambda *_: print("heard", open(sys.argv[1]).read()))
print("read", open(sys.argv[1]).read())
while True: time.sleep(1000)
'''

def supervise():
    supervisor = Supervisor(PrefixedOutput())
    def start(name, code, **settings):
        argv = [sys.executable, "-uc", code, sys.argv[1] + "/tools/a.py"]
        supervisor.start(Process(name=name, argv=argv, **settings))
    start("worker", READ)
    start("stubborn", STUBBORN, stop_seconds=0.2)
    start("fails", FAILS_ONCE + READ)
    start("web", HEARS, reload_signal=signal.SIGHUP)
    plugin_watch.start(supervisor, [sys.argv[1]], ["worker", "stubborn", "fails", "web"])
    supervisor.run()
    supervisor.stop(longest_seconds=1)
    return 0

sys.exit(guarded(supervise))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "plugins" / "tools" / "a.py"
    file.parent.mkdir(parents=True)
    file.write_text("bad one")
    return file


@pytest.fixture
def output(plugin: Path, tmp_path: Path) -> Iterator[Path]:
    """The output of a supervisor that watches the folder of the plugin."""
    log = tmp_path / "output"
    with log.open("wb") as stream:
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, plugin.parents[1]], stdout=stream, stderr=stream
        )
    yield log
    supervisor.terminate()
    supervisor.wait(60)


def test_a_change_reloads_each_process(plugin: Path, output: Path) -> None:
    """A process is stopped, killed if it does not stop, or gets its signal; then it has the new
    code. One that could not start with the old code starts at once.
    """

    def has(*texts: str) -> bool:
        seen = " ".join(output.read_text().split())
        return all(text in seen for text in texts)

    started = ("worker | read bad", "stubborn | read bad", "web | read bad", "fails ended with")
    eventually(lambda: has(*started))

    plugin.write_text("good one")

    reloaded = ("worker | read good", "stubborn | read good", "fails | read good")
    eventually(lambda: has(*reloaded, "web | heard good"))
    assert has(f"Reloading plugins: {plugin} changed")


def test_a_change_is_reported_once_it_is_whole(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is still being written, or that does not count, is no change."""
    monkeypatch.setattr("arkloop.cli.dev.plugin_watch.LOOK_SECONDS", 0)
    watch = PluginWatch([str(plugin.parents[1])])

    plugin.write_text("half")
    assert [] == watch.changed()
    plugin.write_text("whole by now")
    assert [] == watch.changed()
    assert [str(plugin)] == watch.changed()
    assert [] == watch.changed()
    plugin.with_name("__pycache__").mkdir()
    for name in ("__pycache__/a.pyc", ".a.py.swp", "a.py~"):
        plugin.parent.joinpath(name).write_text("")
    assert ([], []) == (watch.changed(), watch.changed())
    os.remove(plugin)
    assert ([], [str(plugin)]) == (watch.changed(), watch.changed())
