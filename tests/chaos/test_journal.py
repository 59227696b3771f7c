import json
from pathlib import Path

import pytest

from chaos import journal
from chaos.journal import Journal
from tests.waiting import in_parallel


def test_entries_of_many_threads_stay_whole(tmp_path: Path) -> None:
    """Each is one line, in the order of writing, and what was written before stays."""
    path = tmp_path / "journal"
    write_in_parallel(path)
    write_in_parallel(path)
    assert 16 == len(journal.read(path))
    times = [entry["at"] for entry in journal.read(path)]

    assert sorted(times) == times


def write_in_parallel(path: Path) -> None:
    with Journal(path) as written:
        in_parallel(8, lambda number: written.write("event", line="x" * 5000 * number))


@pytest.mark.parametrize("in_file", [True, False])
def test_text_comes_back_as_it_was(tmp_path: Path, in_file: bool) -> None:
    """A frame may contain anything, in a file and in memory alike."""
    line = '{"data":"\\u0000 \\n é \u2028 \udc80 😀"}'
    with Journal(tmp_path / "journal" if in_file else None) as written:
        written.write("event", line=line, seen=(1, 2))
        [entry] = written.entries

    assert (line, [1, 2]) == (entry["line"], entry["seen"])


def test_a_line_that_is_cut_short_is_left_out(tmp_path: Path) -> None:
    """A writer that was killed leaves a journal that can be read."""
    path = tmp_path / "journal"
    path.write_text(json.dumps({"at": 1.0, "kind": "run"}) + '\n{"at": 2.0, "ki')

    assert [{"at": 1.0, "kind": "run"}] == journal.read(path)


def test_a_fault_has_a_begin_and_an_end() -> None:
    """A fault's end is recorded also when its block fails."""
    written = Journal()
    with pytest.raises(ZeroDivisionError), written.fault("stall", part="redis"):
        1 / 0  # noqa: B018 - it is there to raise

    expected = [("stall", "begin", "redis"), ("stall", "end", "redis")]
    assert expected == [(e["name"], e["phase"], e["part"]) for e in written.entries]
