"""Client of Arkloop Runs."""

from arkloop_client.client import Arkloop, ArkloopError, StreamedText

__all__ = ["Arkloop", "ArkloopError", "StreamedText"]
