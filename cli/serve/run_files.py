"""The files that the messages of a run name, from the service to its agent worker."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from arkloop.cli.client.client import Refused
from arkloop.cli.serve.run_outbox import FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, OUTDATED
from arkloop.cli.serve.service import Service, Unreachable
from arkloop.shared.agents import message_files
from arkloop.shared.agents.agent_run import RunStopped, StopReason

log = logging.getLogger(__name__)

_OLD_SERVICE = "The service sends no files to agent workers: it is of an older release."


class RunFiles:
    """Reads files; any thread may.

    `wait` sleeps, and raises as soon as the run has to stop; `stop` is called with the reason if a
    response says that it has to.
    """

    def __init__(
        self,
        service: Service,
        run: Mapping[str, Any],
        wait: Callable[[float], None],
        stop: Callable[[StopReason], None],
    ) -> None:
        self._service = service
        self._run_id, self._fence = run["run_id"], run["fence"]
        self._wait, self._stop = wait, stop

    def content(self, file: Mapping[str, Any]) -> bytes:
        """Return the content of a file that a message names; repeats the request until it is there.

        Raises:
            LookupError: it was deleted. NotImplementedError: the service is older. RunStopped
        """
        path = f"runs/{self._run_id}/files/{file['file_id']}"
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._wait(0)
            try:
                return self._service.read(
                    path, {"fence": self._fence}, file["size"], lambda: self._wait(0)
                )
            except Unreachable as error:
                log.warning("file %s of run %s: %s", file["file_id"], self._run_id, error)
                self._wait(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            except Refused as error:
                if error.code in OUTDATED:
                    self._stop("lost")
                    raise RunStopped("lost") from None
                if error.code == "files.not_found":
                    raise message_files.deleted(file["file_id"]) from None
                if error.code == "http.not_found":
                    raise NotImplementedError(_OLD_SERVICE) from error
                raise
