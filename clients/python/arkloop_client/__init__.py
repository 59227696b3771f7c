"""Client of Arkloop Runs."""

from arkloop_client.client import Arkloop, StreamedText
from arkloop_client.errors import ArkloopError

__all__ = ["Arkloop", "ArkloopError", "StreamedText"]
