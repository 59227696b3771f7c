"""Releases of Postgres, for tests of what earlier ones that are supported do not have."""

import pytest

from arkloop.shared.storage.connections import Connections


def skip_before(connections: Connections, release: int) -> None:
    """Skip the test on a server of an earlier release."""
    with connections.reading() as sql:
        if (sql.dialect.server_version_info or ()) < (release,):
            pytest.skip(f"needs Postgres {release}")
