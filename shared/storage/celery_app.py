"""The Celery app of a worker, which takes from the broker what `queue.enqueue` gives to it.

The message may be lost: the row in `runs` is the truth, and workers look there for
what no message brought them; an MCP server that none has asked for its tools is asked
by the first run that needs them. So: early acks, no results, no retries of Celery's.
"""

from collections.abc import Callable
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from celery import Celery

from arkloop.shared.config import Settings
from arkloop.shared.storage import broker_transport
from arkloop.shared.storage.keys import Keys

CONNECT_TIMEOUT_SECONDS = 2
#: A consumer waits for messages in pieces of this length, and must outlast them.
CONSUMER_TIMEOUT_SECONDS = 10


def make_celery(settings: Settings, *, concurrency: int = 10) -> Celery:
    """Make the app for a worker that runs `concurrency` tasks at once.

    The names of its keys in the broker begin with the installation's, which it learns only from
    Postgres: call `name_queue` before it connects.
    """
    broker_transport.use()
    celery = Celery("arkloop", broker=_in_kombus_words(settings.broker_url), set_as_current=False)
    celery.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        # A worker takes four times as many messages in advance as it has slots. While it may take
        # no more it stops asking, and asks again up to 2 s after it may. A message that waits here
        # is in nobody's way: an idle worker finds its run in Postgres.
        worker_prefetch_multiplier=4,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        # Otherwise the backend, which stores no result, is made for each thread, hence each run.
        result_backend_thread_safe=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A broker that answers but refuses writes (a replica, a disk that is full, a failover)
        # would end the consumer, and with it the process, at every start.
        broker_channel_error_retry=True,
        # kombu's default pool of 10 loses acks at 20 greenlets.
        broker_pool_limit=max(10, concurrency // 10),
        broker_transport_options={
            # Messages may be lost: what a dead worker had taken is found in Postgres, so Redis need
            # not keep a second copy of each until it is acknowledged.
            "ack_emulation": False,
            # All messages have the same priority: a worker waits for one list, not for four.
            "priority_steps": [0],
            "max_connections": max(20, 2 * concurrency),
            "socket_timeout": CONSUMER_TIMEOUT_SECONDS,
            "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
            # kombu would wait 2 s and longer before it connects again, and with it every later
            # notification. A consumer's own loop has another limit.
            "max_retries": 0,
        },
        timezone="UTC",
        enable_utc=True,
    )
    return celery


def _in_kombus_words(url: str) -> str:
    """Return the URL, which redis-py would take, as kombu takes it."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "unix":
        password = unquote(parts.password or "") or query.get("password", "")
        user = f"{parts.username or ''}:{quote(password, safe='')}@" if password else ""
        return f"redis+socket://{user}{parts.path}?virtual_host={query.get('db', '0')}"
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in query:
        # kombu would check nothing, with a warning.
        return urlunsplit(parts._replace(query=urlencode({**query, "ssl_cert_reqs": "required"})))
    return url


def name_queue(celery: Celery, keys: Keys) -> None:
    """Let connections that are made from now on use the names of the installation, and change them
    with it.
    """
    celery.conf.broker_transport_options = {
        **celery.conf.broker_transport_options,
        "installation": lambda: keys.installation,
    }


def limit_messages(celery: Celery, free_slots: Callable[[], int]) -> None:
    """Let connections that are made from now on take no more messages at once than there are free
    slots, but always one.
    """
    celery.conf.broker_transport_options = {
        **celery.conf.broker_transport_options,
        "free_slots": free_slots,
    }
