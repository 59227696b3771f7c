"""MCP servers that are programs: as whom they run, and what they get."""

import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from arkloop.shared.config import InvalidSettings
from arkloop.shared.ids import new_id
from arkloop.shared.security import program_user
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server

pytestmark = pytest.mark.processes

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
NOBODY = pwd.getpwnam("nobody")
#: A server in a language that every user of the machine can run: its one tool describes it.
WHO = r"""
about="$(id -u) $(id -g) $(id -G) $HOME $(grep -c NoNewPrivs:.1 /proc/self/status) $(ulimit -Hc)"
about="$about $(kill -0 $PPID 2>/dev/null && echo kills) $(env | cut -d= -f1 | sort | tr '\n' ' ')"
while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
    *'"initialize"'*) result='{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},
      "serverInfo":{"name":"who","version":"1"}}' ;;
    *'"tools/list"'*) result='{"tools":[{"name":"who","description":"'$about'",
      "inputSchema":{"type":"object"}}]}' ;;
    *) [ -n "$id" ] && echo '{"jsonrpc":"2.0","id":'$id',"error":{"code":-32601,"message":"no"}}'
       continue ;;
  esac
  echo '{"jsonrpc":"2.0","id":'$id',"result":'$result'}' | tr -d '\n'; echo
done
"""


#: A server that takes no first message but `initialize`; it counts its starts in a file.
STRICT = r"""
import json, sys
with open(sys.argv[1], "a") as starts: starts.write("+")
about = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
results = {
    "initialize": {**about, "serverInfo": {"name": "strict", "version": "1"}},
    "tools/list": {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]},
}
for number, line in enumerate(sys.stdin):
    message = json.loads(line)
    if number == 0 and message["method"] != "initialize" or len(sys.argv) > 2: sys.exit(1)
    if message["method"] in results:
        reply = {"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}
        print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def as_nobody() -> Iterator[McpClient]:
    made = McpClient(stdio=True, run_as=program_user.of("nobody"))
    yield made
    made.close()


def server(*command: str) -> Server:
    return Server(org_id=new_id(), config_id=new_id(), name="who", command=command)


@AS_ROOT
def test_a_program_runs_as_the_user_that_is_named(as_nobody: McpClient) -> None:
    """With the groups and the home of that user, no way back, and without a core dump."""
    [tool] = as_nobody.tools(server("/bin/sh", "-c", WHO))

    uid, gid, rest = tool.description.split(" ", 2)
    assert (str(NOBODY.pw_uid), str(NOBODY.pw_gid)) == (uid, gid)
    groups = " ".join(map(str, os.getgrouplist("nobody", NOBODY.pw_gid)))
    assert rest.startswith(f"{groups} {NOBODY.pw_dir} 1 0 "), rest
    assert "kills" not in rest
    assert not [name for name in rest.split() if "ARKLOOP" in name]


@AS_ROOT
def test_a_program_that_this_user_may_not_start_is_reported(
    as_nobody: McpClient, tmp_path: Path
) -> None:
    """The reason names the user, who may not even enter the folder."""
    (program := tmp_path / "program").write_text("#!/bin/sh\n")
    program.chmod(0o700)

    with pytest.raises(McpFailed, match="cannot be started as the user nobody"):
        as_nobody.tools(server(str(program)))


def test_a_program_that_exits_as_if_it_were_missing_is_not_called_so() -> None:
    """Shells exit with 127 when a command of their script is not there."""
    with (
        closing(McpClient(stdio=True)) as client,
        pytest.raises(McpFailed, match="or it exited with the status 127"),
    ):
        client.tools(server("/bin/sh", "-c", "no-such-command"))


def test_a_program_that_exits_at_the_newest_protocol_gets_an_older_one(tmp_path: Path) -> None:
    """It is started once more, and only once if it exits again."""
    with closing(McpClient(stdio=True)) as client:
        for name, *more in (("first",), ("second", "exits")):
            command = (sys.executable, "-I", "-S", "-c", STRICT, str(tmp_path / name), *more)
            with nullcontext() if not more else pytest.raises(McpFailed, match="process exited"):
                assert ["t"] == [tool.name for tool in client.tools(server(*command))]
            assert "++" == (tmp_path / name).read_text()


@AS_ROOT
def test_root_starts_programs_as_nobody() -> None:
    """A setting that names another user decides, and may name root."""
    unnamed = program_user.of(None)
    assert unnamed is not None
    assert ("nobody", NOBODY.pw_uid) == (unnamed.name, unnamed.uid)
    assert program_user.of("root") is None


def test_others_start_programs_as_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can become no other user, and a setting that names one is wrong."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)

    assert program_user.of(None) is None
    assert program_user.of("nobody") is None
    with pytest.raises(InvalidSettings, match="only root can start programs as 'root'"):
        program_user.of("root")
    with pytest.raises(InvalidSettings, match="no user 'nobody-here'"):
        program_user.of("nobody-here")
