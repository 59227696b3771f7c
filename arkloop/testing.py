"""The test kit for authors of plugins; `docs/how-to/plugins.md` shows its use."""

from arkloop.worker.testing.agent_kit import play_agent
from arkloop.worker.testing.kit import call, play
from arkloop.worker.testing.played_run import PlayedRun, Result

__all__ = ["PlayedRun", "Result", "call", "play", "play_agent"]
