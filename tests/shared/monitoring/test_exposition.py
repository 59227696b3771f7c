"""The folder that processes share, and who empties it."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.monitoring import count_files, exposition

pytestmark = pytest.mark.processes

_ENTER = """
import sys
from pathlib import Path
from arkloop.shared.monitoring import exposition
exposition._enter(Path(sys.argv[1]))
print("in", flush=True)
sys.stdin.read()
"""
_ENVIRON = {
    "PATH": os.environ["PATH"],
    "ARKLOOP_DATABASE_URL": "postgresql://127.0.0.1:1/runs",
    "ARKLOOP_REDIS_URL": "redis://127.0.0.1:1",
    "ARKLOOP_JWT_SECRET": "j" * 32,
    "ARKLOOP_METRICS_PORT": "9464",
}


def test_the_first_process_empties_the_folder_and_others_do_not(tmp_path: Path) -> None:
    """What processes of an earlier start have counted would be counted again; what lives stays."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "1-1.counts").touch()
    first = _started(folder)
    assert [] == [*folder.glob("*.counts")]
    (folder / "2-2.counts").touch()
    second = _started(folder)
    assert ["2-2.counts"] == [file.name for file in folder.glob("*.counts")]
    for process in (first, second):
        process.kill()
        process.communicate()


def test_what_tidies_up_old_files_forgets_no_process(tmp_path: Path) -> None:
    """The folder itself is locked, which systemd-tmpfiles respects; no old file is needed."""
    first = _started(tmp_path)
    (tmp_path / "1-1.counts").touch()
    for path in tmp_path.iterdir():
        if path.suffix != count_files.SUFFIX:
            path.unlink()
    second = _started(tmp_path)
    assert ["1-1.counts"] == [path.name for path in tmp_path.iterdir()]
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)
    for process in (first, second):
        process.kill()
        process.communicate()


def _started(folder: Path, program: str = _ENTER) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and "in\n" == process.stdout.readline()
    return process


_COUNT = """
import sys, threading
from pathlib import Path
from arkloop.shared import metrics
from arkloop.shared.monitoring.count_files import CountFile
file = CountFile(Path(sys.argv[1]))
for metric in metrics.all_metrics():
    metric.enable(file.room, threading.Lock())
metrics.STREAMS.add(3)
metrics.TOOL_CALLS.add(2, 'a "quoted" \\\\ back\\nslash')
metrics.SWEEPS.add(0.25)
metrics.SWEEPS.add(7)
print("in", flush=True)
sys.stdin.read()
"""


def test_processes_are_added_up_and_gauges_of_dead_ones_are_forgotten(tmp_path: Path) -> None:
    """Streams of a process that was killed are open no more; what it has counted stays."""
    first, second = (_started(tmp_path, _COUNT) for _ in range(2))
    both = _samples(tmp_path)
    first.kill()
    first.communicate()
    one = _samples(tmp_path)
    second.kill()
    second.communicate()

    name = "arkloop_tool_calls_total", 'a "quoted" \\ back\nslash'
    assert (4, 4) == (both[name], one[name])
    assert (6, 3) == (both["arkloop_open_streams", ""], one["arkloop_open_streams", ""])
    assert 14.5 == one["arkloop_sweep_seconds_sum", ""]
    buckets = [one["arkloop_sweep_seconds_bucket", le] for le in ("0.1", "0.25", "5.0", "+Inf")]
    assert [0, 2, 2, 4] == buckets
    assert 4 == one["arkloop_sweep_seconds_count", ""]


def _samples(folder: Path) -> dict[tuple[str, str], float]:
    """Return what Prometheus' own parser finds, by name and by the values of labels."""
    text = "".join(f"{line}\n" for one in exposition._counted(folder) for line in one.lines())
    return {
        (sample.name, " ".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name can be guessed: somebody could have made it to write counts of their own."""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError):
        exposition._enter(tmp_path / "metrics")


def test_a_folder_of_another_user_is_found_by_a_check(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write to it, and would be refused at the start nevertheless."""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    counting = replace(settings, metrics_port=9464, metrics_dir=str(tmp_path / "metrics"))
    exposition.check(counting)
    (tmp_path / "metrics").mkdir()

    with pytest.raises(InvalidSettings, match="it belongs to another user"):
        exposition.check(counting)


def test_a_folder_that_cannot_be_looked_at_is_refused(settings: Settings, tmp_path: Path) -> None:
    """As below one that the user may not enter, which root may."""
    folder = tmp_path / ("long" * 100) / "counts"
    counting = replace(settings, metrics_port=9464, metrics_dir=str(folder))

    with pytest.raises(InvalidSettings, match="cannot be used: File name too long"):
        exposition.prepare(counting)


@pytest.mark.parametrize("folder", ["/etc/passwd/counts", "/proc/counts"])
@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("import arkloop.worker.app", 1),
        ("from arkloop.api.app import BOOT_ERROR, create_app; create_app()", 3),
    ],
)
def test_a_process_with_a_folder_that_cannot_be_created_does_not_start(
    start: str, status: int, folder: str
) -> None:
    """It ends with a line that names the variable, also where root is refused by `/proc` alone."""
    environ = {**_ENVIRON, "ARKLOOP_METRICS_DIR": folder}
    done = subprocess.run(
        [sys.executable, "-c", start], env=environ, capture_output=True, text=True
    )

    assert status == done.returncode, done.stderr
    assert f"ARKLOOP_METRICS_DIR: {folder!r} cannot be used: " in done.stderr
    assert "Traceback" not in done.stderr


_ON_A_FULL_DISK = """
import errno, os, sys
from tests.full_disk import full_disk

def full(*_, **__):
    number = getattr(errno, sys.argv[1])
    raise OSError(number, os.strerror(number))

os.mkdir = full
with full_disk():
    import arkloop.worker.app
    from arkloop.shared.monitoring import exposition
    print(exposition.folder_of(arkloop.worker.app.settings))
"""


@pytest.mark.parametrize("lack", ["ENOSPC", "EDQUOT"])
def test_a_process_starts_on_a_full_disk(tmp_path: Path, lack: str) -> None:
    """Its folder is that of the other processes, wherever there is room for one."""
    environ = {**_ENVIRON, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, lack], env=environ, capture_output=True, text=True
    )

    assert 0 == done.returncode, done.stderr
    assert f"{tmp_path}/arkloop-metrics-{os.getuid()}-9464\n" == done.stdout


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"TMPDIR": "/var"}, "/var"),
        ({"TMPDIR": "/none/counts"}, "/tmp"),
        ({"TMPDIR": ""}, "/tmp"),
        ({}, "/tmp"),
    ],
)
def test_the_folder_is_where_temporary_files_are(variables: dict[str, str], folder: str) -> None:
    """A folder for them that does not exist is not created, also not by root."""
    settings = Settings.from_env({**_ENVIRON, **variables})

    assert Path(folder) == exposition.folder_of(settings).parent


def test_the_variable_that_names_an_unusable_folder_is_reported(
    settings: Settings, tmp_path: Path
) -> None:
    """It is `TMPDIR` where no folder of the counts is set."""
    counting = replace(settings, metrics_port=9464, temporary_dir=str(tmp_path))
    exposition.folder_of(counting).touch()

    with pytest.raises(InvalidSettings, match="TMPDIR: '.*' cannot be used: "):
        exposition.prepare(counting)


@pytest.mark.parametrize("lack", [errno.ENOSPC, errno.EDQUOT])
def test_without_room_for_the_folder_nothing_is_counted(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lack: int,
) -> None:
    """The process works, and says so."""

    def full(*_: object) -> None:
        raise OSError(lack, os.strerror(lack))

    monkeypatch.setattr(os, "mkdir", full)
    caplog.set_level(logging.ERROR)
    exposition.count(replace(settings, metrics_port=9464, metrics_dir=str(tmp_path / "counts")))

    [line] = caplog.messages
    expected = f"metrics: this process counts nothing: [Errno {lack}] {os.strerror(lack)}"
    assert expected == line


def test_a_folder_that_cannot_be_used_matters_with_counts_alone(
    settings: Settings, tmp_path: Path
) -> None:
    """A check creates nothing."""
    exposition.prepare(replace(settings, metrics_dir="/etc/passwd/counts"))
    folder = tmp_path / "counts"
    counting = replace(settings, metrics_port=9464, metrics_dir=str(folder))

    exposition.check(counting)
    assert not folder.exists()
    exposition.prepare(counting)
    assert folder.is_dir()
