"""The files of plugins, looked at again and again: `arkloop dev` reloads what has changed."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from arkloop.cli.dev.supervisor import Supervisor

#: Between two looks. A change is reported once it has been the same for one of these: editors and
#: `git checkout` write several files, one after another.
LOOK_SECONDS = 0.5


class PluginWatch:
    """The files below these folders; hidden ones and caches of Python do not count."""

    def __init__(self, folders: Iterable[str]) -> None:
        self._folders = [Path(folder) for folder in folders]
        self._reported = self._last = self._look()
        self._next_look = time.monotonic() + LOOK_SECONDS

    def changed(self) -> list[str]:
        """Return the paths of the files that have changed since the last report, if any have.

        Looks not more often than every `LOOK_SECONDS`.
        """
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + LOOK_SECONDS
        seen, last = self._look(), self._last
        self._last = seen
        if seen != last or seen == self._reported:
            return []
        before, self._reported = self._reported, seen
        paths = {*before, *seen}
        return sorted(path for path in paths if before.get(path) != seen.get(path))

    def _look(self) -> dict[str, tuple[int, int]]:
        seen: dict[str, tuple[int, int]] = {}
        for folder in self._folders:
            for path, folders, files in os.walk(folder):
                folders[:] = [name for name in folders if _counts(name)]
                for name in filter(_counts, files):
                    file = Path(path, name)
                    try:
                        status = file.stat()
                    except OSError:
                        continue  # it is gone again
                    seen[str(file)] = (status.st_mtime_ns, status.st_size)
        return seen


def start(supervisor: Supervisor, folders: Iterable[str], names: Iterable[str]) -> None:
    """Reload these processes whenever a file of a plugin changes, from now on."""
    watch = PluginWatch(filter(None, folders))

    def look() -> None:
        if changed := watch.changed():
            supervisor.output.plain(f"Reloading plugins: {', '.join(changed[:3])} changed")
            for name in names:
                supervisor.reload(name)

    supervisor.each_turn = look


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__" and not name.endswith((".pyc", "~"))
