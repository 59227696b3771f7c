"""An order for files on several processes: one of four takes the first ones, others the last ones.

The files that use the whole service stand first, and wait most of their time. Beside files that
compute, they leave no core idle, and most processes never start the whole service.
"""

from typing import Any

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class BothEnds(LoadFileScheduling):
    """A queue of files with two ends: most processes take from its back."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        if takes_last(node.gateway.id):
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def takes_last(name: str) -> bool:
    """Return whether the process of this name, `gw1` for example, takes the last file left."""
    return int(name.removeprefix("gw")) % 4 != 0


def scheduler(config: Any, log: Any) -> BothEnds | None:
    """Return the order for `--dist loadfile`, and None for the others."""
    return BothEnds(config, log) if config.getvalue("dist") == "loadfile" else None
