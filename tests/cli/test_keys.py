"""`arkloop keys`."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from arkloop.cli.keys import keys

pytestmark = pytest.mark.processes


def test_the_help_lists_commands_of_both_kinds() -> None:
    """It has those that use the API, and those that use the database."""
    help_ = CliRunner().invoke(keys, ["--help"]).output

    for name in ("create", "list", "revoke", "rotate-encryption", "erase-encryption"):
        assert name in help_


def test_commands_for_api_keys_load_no_database() -> None:
    """A client has no use for it."""
    code = (
        "import sys; from arkloop.cli.keys import keys; keys.get_command(None, 'list');"
        " sys.exit('sqlalchemy' in sys.modules)"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code]).returncode
