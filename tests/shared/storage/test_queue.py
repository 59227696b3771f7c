"""The broker's URL means the same to Celery as to the Redis client."""

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
import trustme

from arkloop.shared.config import Settings
from arkloop.shared.storage import celery_app, queue
from arkloop.shared.storage.connections import connect_redis
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.outage import Outage
from tests.tls_proxy import tls_proxy
from tests.unix_redis import failing_over, unix_redis

pytestmark = pytest.mark.processes


def pass_message(settings: Settings, url: str) -> None:
    """Send a task by one connection and take it by another, as web and worker processes do."""
    settings, keys, run_id = replace(settings, broker_url=url), Keys(), uuid4()
    keys.installation = uuid4().hex
    celery = celery_app.make_celery(settings)
    celery_app.name_queue(celery, keys)
    with connect_redis(url) as broker:
        queue.enqueue(broker, keys, Outage(1), queue.EXECUTE, [run_id])
    with (
        celery.connection_for_read() as connection,
        connection.SimpleQueue(celery.conf.task_default_queue) as tasks,
    ):
        message = tasks.get(timeout=60)
        message.ack()
        assert str(run_id) == message.payload[0][0]


@pytest.mark.parametrize(
    "form", ["unix://:p%40ss@{path}?db=3", "unix://{path}?db=3&password=p%40ss"]
)
def test_a_socket_is_a_broker(settings: Settings, tmp_path: Path, form: str) -> None:
    """A broker may be a Unix socket, by the Redis client's URL with database and password."""
    with unix_redis(tmp_path) as path:
        url = form.format(path=path)
        pass_message(settings, url)

        with connect_redis(url) as client:
            assert client.keys("*_kombu.binding.celery")


def test_a_server_that_was_demoted_gets_one_message(tmp_path: Path) -> None:
    """The address leads to the new primary by then: what comes later goes there."""
    keys = Keys()
    with failing_over(tmp_path) as pair, connect_redis(pair.url) as broker:
        queue.enqueue(broker, keys, Outage(0), queue.EXECUTE, [uuid4()])
        pair.fail_over()

        with pytest.raises(redis.ReadOnlyError):
            queue.enqueue(broker, keys, Outage(0), queue.EXECUTE, [uuid4()])
        queue.enqueue(broker, keys, Outage(0), queue.EXECUTE, [uuid4()])

        assert 1 == pair.promoted.llen(":celery")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_url(settings: Settings, authority: trustme.CA) -> Iterator[str]:
    """The tests' Redis over TLS, by a certificate that no system trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    plain = urlsplit(settings.redis_url)
    assert plain.port is not None
    with tls_proxy(context, plain.port) as port:
        yield f"rediss://:{plain.password}@127.0.0.1:{port}/0"


def test_a_certificate_that_is_not_trusted_is_refused(settings: Settings, tls_url: str) -> None:
    """Neither client sends its password to a broker with an untrusted certificate."""
    with connect_redis(tls_url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        pass_message(settings, tls_url)


def test_a_certificate_for_another_host_is_refused(
    settings: Settings, tls_url: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """Although an authority that is trusted has signed it."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    other = tls_url.replace("127.0.0.1", "localhost") + f"?ssl_ca_certs={file}"

    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        pass_message(settings, other)


def test_an_authority_of_ones_own_can_be_named(
    settings: Settings, tls_url: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """The URL of a broker can name a certificate authority of its own, for both clients."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    url = f"{tls_url}?ssl_ca_certs={file}"

    with connect_redis(url) as client:
        assert client.ping()
    pass_message(settings, url)


def test_the_systems_authorities_can_be_replaced(
    settings: Settings,
    tls_url: str,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The variable that replaces the trusted authorities elsewhere replaces them for the broker,
    too.
    """
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    with connect_redis(tls_url) as client:
        assert client.ping()
    pass_message(settings, tls_url)


def test_the_check_ends_only_on_request(settings: Settings, tls_url: str) -> None:
    """The certificate check can be switched off for vendors with self-made certificates."""
    pass_message(settings, f"{tls_url}?ssl_cert_reqs=none")
