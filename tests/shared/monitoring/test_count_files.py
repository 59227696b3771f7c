"""Files of counts: what a process has counted is what others read."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arkloop.shared.monitoring import count_files
from arkloop.shared.monitoring.count_files import CountFile


def test_series_are_read_as_they_were_counted(tmp_path: Path) -> None:
    """Series of later chunks are read, too, while the process still counts."""
    file = CountFile(tmp_path)
    count = count_files.CHUNK_BYTES // 40
    rooms = [file.room("things", (f"ä{number}", "b"), 3) for number in range(count)]
    for number, (cells, first) in enumerate(rooms):
        cells[first + 2] += number
    found = [*count_files.read(tmp_path)]
    assert [("things", (f"ä{number}", "b"), (0, 0, number), True) for number in range(count)] == [
        (series.name, series.labels, series.cells, series.is_alive) for series in found
    ]
    [path] = tmp_path.iterdir()
    assert 1 < path.stat().st_size // count_files.CHUNK_BYTES


def test_a_process_continues_what_one_that_is_gone_has_counted(tmp_path: Path) -> None:
    """Each process that is replaced would leave a file, and each scrape would read all of them."""
    for _ in range(3):
        file = CountFile(tmp_path)
        for number in range(count_files.CHUNK_BYTES // 40):
            cells, first = file.room("things", (str(number),), 2)
            cells[first + 1] += 1
        cells, first = file.room("others", (), 1)
        cells[first] += 1
        fcntl.flock(file._file, fcntl.LOCK_UN)  # as the end of a process does
    counted = [(series.cells, series.is_alive) for series in count_files.read(tmp_path)]
    assert 1 == len([*tmp_path.iterdir()])
    assert [((0, 3), False)] * (count_files.CHUNK_BYTES // 40) == counted[:-1]
    assert ((3,), False) == counted[-1]


def test_processes_that_start_together_have_a_file_each(tmp_path: Path) -> None:
    """Two that added to the same cells would lose counts; none waits for the file of another."""
    with ThreadPoolExecutor(16) as threads:
        files = [*threads.map(lambda _: CountFile(tmp_path), range(16), timeout=20)]
    inodes = {os.fstat(file._file).st_ino for file in files}
    assert len(files) == len(inodes)


def test_a_full_disk_costs_counts_and_not_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing to a page without room on the disk would end the process by a signal."""

    monkeypatch.setattr(os, "pwrite", lambda *_args: 4_096)
    file = CountFile(tmp_path)
    for kind in ("a", "b"):
        cells, first = file.room("things", (kind,), 1)
        cells[first] += 1
    assert [] == [*count_files.read(tmp_path)]
    assert ["metrics: some are not counted: [Errno 28] No space left on device"] == [
        record.getMessage() for record in caplog.records
    ]


def test_a_folder_without_room_for_a_file_costs_counts_and_not_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system whose inodes are used up ends no process that starts."""

    def touch(path: Path, _mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "touch", touch)
    file = CountFile(tmp_path)
    for kind in ("a", "b"):
        cells, first = file.room("things", (kind,), 1)
        cells[first] += 1
    assert 1 == cells[first]
    assert [] == [*count_files.read(tmp_path)]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("metrics: some are not counted: [Errno 28] No space left on device")
