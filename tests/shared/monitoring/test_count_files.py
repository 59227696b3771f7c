"""Files of counts: what a process has counted is what others read."""

import os
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
