"""Settings from the environment, and the variables of platforms that are their fallbacks."""

import re

import pytest

from arkloop.shared.config import InvalidSettings, Settings

#: What Heroku gives a process.
PLATFORM = {
    "DATABASE_URL": "postgres://user:secret@db.example.com:5432/name?sslmode=require",
    "REDIS_URL": "rediss://:secret@redis.example.com:6380",
    "PORT": "33507",
    "WEB_CONCURRENCY": "3",
    "ARKLOOP_JWT_SECRET": "j" * 32,
}


def test_a_platforms_variables_are_enough() -> None:
    """The URLs keep their TLS parameters, and web listens where the platform connects to."""
    settings = Settings.from_env(PLATFORM)

    database = "postgresql+psycopg://user:secret@db.example.com:5432/name?sslmode=require"
    assert database == settings.database_url
    assert [PLATFORM["REDIS_URL"]] * 2 == [settings.redis_url, settings.broker_url]
    assert ("0.0.0.0", 33507, 3) == (settings.host, settings.port, settings.api_workers)


def test_a_platforms_redis_may_have_a_certificate_of_its_own() -> None:
    """The setting applies to both URLs, whatever password the platform gives them, but not to one
    that decides for itself.
    """
    url, broker = PLATFORM["REDIS_URL"], "rediss://b.example.com/1?ssl_cert_reqs=required"
    settings = Settings.from_env(PLATFORM | {"ARKLOOP_REDIS_VERIFY": "0"})
    assert [f"{url}?ssl_cert_reqs=none"] * 2 == [settings.redis_url, settings.broker_url]

    of_broker = {"ARKLOOP_REDIS_VERIFY": "0", "ARKLOOP_BROKER_URL": broker}
    assert broker == Settings.from_env(PLATFORM | of_broker).broker_url
    plain = {"ARKLOOP_REDIS_VERIFY": "0", "ARKLOOP_REDIS_URL": "redis://r.example.com/0?x=1"}
    assert "redis://r.example.com/0?x=1" == Settings.from_env(PLATFORM | plain).redis_url


def test_our_own_settings_come_first() -> None:
    """A variable that is there for something else changes nothing that is set."""
    ours = {
        "ARKLOOP_DATABASE_URL": "postgresql://ours.example.com/name",
        "ARKLOOP_REDIS_URL": "redis://ours.example.com",
        "ARKLOOP_PORT": "8081",
        "ARKLOOP_API_WORKERS": "4",
    }
    settings = Settings.from_env(PLATFORM | ours)

    assert "ours.example.com" in settings.database_url
    assert "redis://ours.example.com" == settings.redis_url
    assert ("127.0.0.1", 8081, 4) == (settings.host, settings.port, settings.api_workers)


def test_a_platforms_port_can_be_kept_on_this_machine() -> None:
    """`ARKLOOP_HOST` says where to listen, however the port was chosen."""
    settings = Settings.from_env(PLATFORM | {"ARKLOOP_HOST": "127.0.0.1"})

    assert ("127.0.0.1", 33507) == (settings.host, settings.port)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://db.example.com/name"),
        ("REDIS_URL", "http://redis.example.com"),
        ("ARKLOOP_BROKER_URL", "amqp://rabbit.example.com"),
        ("ARKLOOP_BROKER_URL", "sentinel://redis.example.com:26379"),
        ("ARKLOOP_S3_ENDPOINT_URL", "https://s3.example.com/bucket"),
        ("ARKLOOP_S3_ENDPOINT_URL", "https://s3.example.com:abc"),
        ("ARKLOOP_S3_ENDPOINT_URL", "http://a..b"),
        ("ARKLOOP_LOCAL_BASE_URL", "127.0.0.1:8000"),
        ("ARKLOOP_LOCAL_BASE_URL", "http://127.0.0.1:99999"),
        ("OPENAI_BASE_URL", "https://models.example.com:abc/v1"),
        ("OPENAI_BASE_URL", "http://a..b/v1"),
        ("ANTHROPIC_BASE_URL", "https://[::1"),
        ("ANTHROPIC_BASE_URL", "http://h:0"),
        ("PORT", "http"),
        ("PORT", "65536"),
        ("ARKLOOP_PORT", "99999"),
        ("ARKLOOP_METRICS_PORT", "70000"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "2.5"),
        ("ARKLOOP_NEW_ORG_CREDITS", "0.5"),
        ("ARKLOOP_NEW_ORG_CREDITS", "-1"),
        ("ARKLOOP_NEW_ORG_CREDITS", "1000000000"),
        ("ARKLOOP_WORKER_NICENESS", "20"),
        ("ARKLOOP_WORKER_NICENESS", "-1"),
        ("ARKLOOP_RETENTION_DAYS", "0"),
        ("ARKLOOP_RETENTION_DAYS", "36501"),
    ],
)
def test_a_problem_names_the_variable_that_has_it(name: str, value: str) -> None:
    """An operator finds what to change under the name that is in the environment."""
    with pytest.raises(InvalidSettings, match=rf"^{name}: must "):
        Settings.from_env(PLATFORM | {name: value})


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "ANTHROPIC_API_KEY"])
@pytest.mark.parametrize("key", ["\u201csk-1\u201d", "sk-1\nsk-2"])
def test_a_key_that_no_header_can_carry_is_refused(name: str, key: str) -> None:
    """Each run would fail before its first request; the problem does not show the key."""
    with pytest.raises(InvalidSettings) as raised:
        Settings.from_env(PLATFORM | {name: key})

    assert f"{name}: has characters that no key has" == str(raised.value)


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        ("*", "is not allowed: list each origin"),
        ("https://*.example.com", "is not allowed: list each origin"),
        ("null", "is not an origin"),
        ("app.example.com", "is not an origin"),
        ("https://app.example.com/", "is not an origin"),
        ("https://App.example.com", "is not an origin"),
        ("https://user@app.example.com", "is not an origin"),
        ("https://app.example.com:443", "must be 'https://app.example.com', as browsers send it"),
        ("http://app.example.com:80", "must be 'http://app.example.com', as browsers send it"),
        ("https://[2001:0db8::1]", "must be 'https://[2001:db8::1]', as browsers send it"),
        ("https://192.168.1", "must be 'https://192.168.0.1', as browsers send it"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str, why: str) -> None:
    """It would never be equal to that of a page, and a pattern would admit pages of others."""
    with pytest.raises(InvalidSettings, match=re.escape(f"{origin!r} {why}")):
        Settings.from_env(PLATFORM | {"ARKLOOP_CORS_ORIGINS": f"https://a.example,{origin}"})


def test_origins_are_listed_as_browsers_send_them() -> None:
    """They have a port where it is not the default one, and may be addresses."""
    origins = ("https://app.example.com", "http://localhost:5173", "http://[::1]:3000")
    settings = Settings.from_env(PLATFORM | {"ARKLOOP_CORS_ORIGINS": ", ".join(origins)})

    assert origins == settings.cors_origins


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("https://runs.example.com", True),
        ("https://runs.example.com:8443", True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:8080", True),
        ("http://runs.example.com", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("https://runs.example.com/", False),
        ("https://runs.example.com/arkloop", False),
        ("runs.example.com", False),
    ],
)
def test_the_public_url_is_an_origin_that_nobody_else_can_be(url: str, is_taken: bool) -> None:
    """People come back to it with a code: without TLS it must be on this machine."""
    environ = PLATFORM | {"ARKLOOP_PUBLIC_URL": url}
    if is_taken:
        assert url == Settings.from_env(environ).public_url
    else:
        with pytest.raises(InvalidSettings, match="^ARKLOOP_PUBLIC_URL: "):
            Settings.from_env(environ)


@pytest.mark.parametrize(
    ("host", "metrics_host", "collide"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "::", True),
        ("[::1]", "::1", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_metrics_may_have_the_port_of_web_at_another_address(
    host: str, metrics_host: str, collide: bool
) -> None:
    """A wildcard is every address."""
    environ = PLATFORM | {"PORT": "9464", "ARKLOOP_METRICS_PORT": "9464"}
    hosts = {"ARKLOOP_HOST": host, "ARKLOOP_METRICS_HOST": metrics_host}
    assert collide == Settings.from_env(environ | hosts).metrics_collide_with_web
    assert not Settings.from_env(environ | hosts | {"PORT": "8080"}).metrics_collide_with_web
