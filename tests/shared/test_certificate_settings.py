"""The variables of trusted certificate authorities, as `Settings` reads them."""

import secrets
from pathlib import Path

import pytest
import trustme

from arkloop.shared.config import InvalidSettings, Settings


def read(**variables: object) -> Settings:
    return Settings.from_env(
        {
            "ARKLOOP_DATABASE_URL": "postgresql://host/db",
            "ARKLOOP_REDIS_URL": "redis://host",
            "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
            **{name: str(value) for name, value in variables.items()},
        }
    )


def test_a_file_of_authorities_is_accepted(tmp_path: Path) -> None:
    """The folder is not looked at then: it is not used."""
    file = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(file))

    assert read(SSL_CERT_FILE=file, SSL_CERT_DIR="/nope")
    assert read(SSL_CERT_FILE="", SSL_CERT_DIR=tmp_path)


def test_one_of_several_folders_is_enough(tmp_path: Path) -> None:
    """OpenSSL reads a list of them, and passes over a folder that is missing."""
    assert read(SSL_CERT_DIR=f"/nope:{tmp_path}")
    assert read(SSL_CERT_DIR=f"{tmp_path}:/nope:")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SSL_CERT_FILE", "/nope", "'/nope' cannot be read: No such file or directory"),
        ("SSL_CERT_FILE", "/etc", "'/etc' cannot be read: Is a directory"),
        ("SSL_CERT_FILE", __file__, f"{__file__!r} has no certificates in PEM"),
        ("SSL_CERT_DIR", "/nope", "'/nope' is not a folder that this user may read"),
        ("SSL_CERT_DIR", "/nope:/no", "'/nope:/no' is not a folder that this user may read"),
        ("SSL_CERT_DIR", __file__, f"{__file__!r} is not a folder that this user may read"),
    ],
)
def test_authorities_that_cannot_be_used_are_refused_at_the_start(
    name: str, value: str, why: str
) -> None:
    """The variable and the file are named, with what else is wrong."""
    with pytest.raises(InvalidSettings) as refused:
        read(**{name: value, "ARKLOOP_PORT": "many"})

    assert [f"{name}: {why}"] == [
        line for line in str(refused.value).splitlines() if not line.startswith("ARKLOOP_PORT")
    ]
    assert "ARKLOOP_PORT: " in str(refused.value)
