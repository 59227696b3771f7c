"""Gunicorn's configuration, from the same settings as everything else.

Only `config`, `logs` and `machine` of `shared`, and `process_memory`, may be imported here: this
runs in the master process, and psycopg must not be loaded before gevent has patched the worker,
else each query stops the whole process.
"""

import gc
import logging
import sys
from typing import Any

from gunicorn import glogging

from arkloop.shared import logs, machine
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.security import process_memory

try:
    _settings = Settings.from_env()
except InvalidSettings as error:
    sys.exit(str(error))
if _settings.metrics_collide_with_web:
    # Here alone: a worker listens at no other port.
    sys.exit("ARKLOOP_METRICS_PORT: must differ from ARKLOOP_PORT (or PORT)")
if not _settings.core_dumps:
    process_memory.close()
machine.raise_file_limit()


class _Logger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's logger, in JSON from its first line.

    With `logconfig_dict` gunicorn would format a line for each request, even without an access log,
    and fail at those of streams, whose environment is released; and gevent would no longer know
    the handlers whose locks it has to replace.
    """

    def setup(self, cfg: Any) -> None:
        """Set the handlers, at the start and at each reload."""
        super().setup(cfg)
        handler = logs.handler()
        root = logging.getLogger()
        root.handlers[:] = self.error_log.handlers[:] = [handler]
        root.setLevel(logging.INFO)


_host = _settings.host.strip("[]")
bind = f"[{_host}]:{_settings.port}" if ":" in _host else f"{_host}:{_settings.port}"
workers = _settings.api_workers
worker_class = "arkloop.api.http.web_worker.WebWorker"
worker_connections = 10_000
backlog = 4096
max_requests = 0  # a worker that is recycled cuts thousands of streams
preload_app = False
#: Seconds. Also the time for the headers of a request, and how long an idle connection
#: can hold up a graceful stop.
keepalive = 5
graceful_timeout = 10
timeout = 30
limit_request_line = 8190
#: Else clients of a proxy on this machine could send SCRIPT_NAME, and this service would leave out
#: the beginning of a path that the proxy's rules were applied to.
forwarder_headers = ""
accesslog = None  # stream tickets travel in the query string; see api/http/observation.py
errorlog = "-"
logger_class = _Logger
control_socket_disable = True


def post_fork(_server: Any, _worker: Any) -> None:
    """Leave the lines of the log to a thread, and load the app without collecting garbage: there is
    little, and looking for it takes longer than a tenth of the start.
    """
    logs.handler().writes_directly = False
    gc.disable()


def post_worker_init(worker: Any) -> None:
    """Prepare the forked worker for its first requests, start its loops, and end its streams when
    it stops.
    """
    from arkloop.api.warm_up import warm_up
    from arkloop.shared.files import expiry
    from arkloop.shared.monitoring import exposition
    from arkloop.shared.runs import sweep

    exposition.count(_settings)
    warm_up(worker.wsgi)
    extensions = worker.wsgi.extensions
    for hub in ("arkloop.hub", "arkloop.polls"):
        extensions[hub].stopping = lambda: not worker.alive
    sweep.start(extensions["arkloop"])
    expiry.start(extensions["arkloop"], extensions["arkloop.storage"])
    exposition.listen(extensions["arkloop"])
    if _settings.otlp_url:
        from arkloop.shared.monitoring import span_export

        worker.span_exporter = span_export.start(_settings, "arkloop-web")
    _calm_the_collector()


def worker_exit(_server: Any, worker: Any) -> None:
    """Send the last spans."""
    if exporter := getattr(worker, "span_exporter", None):
        exporter.stop()


def _calm_the_collector() -> None:
    """Collect garbage less often: open streams are millions of objects that live on, and a full
    collection would stop the process for a quarter of a second with each thousand new streams.
    """
    gc.collect()
    gc.freeze()  # what was loaded at the start is never looked at again
    gc.set_threshold(1_000, 10, 50)
    gc.enable()
