"""A process that can start no more threads of one name."""

import threading

import pytest


def refuse_threads(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let threads of this name fail to start, as they do at the limit of the machine."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    patch.setattr(threading.Thread, "start", refused)
