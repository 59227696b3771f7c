"""The test kit for authors of plugins; `docs/how-to/plugins.md` shows its use."""

from arkloop.worker.testing.kit import PlayedRun, Result, call, play

__all__ = ["PlayedRun", "Result", "call", "play"]
