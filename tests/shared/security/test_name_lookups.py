"""Lookups of names whose name server does not respond or is slow, while threads are greenlets."""

import subprocess
import sys

import pytest

from arkloop.shared.security.name_lookups import MAX_LOOKUPS_OF_NAME

pytestmark = pytest.mark.processes

#: Lets each native lookup of a name below `dead.example` or `slow.example` wait until `respond` is
#: called.
SILENT_NAME_SERVER = """
from gevent import monkey; monkey.patch_all()
import _socket, socket, threading, time
from collections import Counter
import gevent, httpcore2
from arkloop.shared.delivery.endpoints import MAX_ENDPOINTS
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import CheckedBackend
from arkloop.shared.security.egress import Policy
from arkloop.shared.security.name_lookups import look_up

silent = monkey.get_original("_thread", "allocate_lock")()
silent.acquire()
respond = silent.release
begun = Counter()

def getaddrinfo(host, port, *args, **kwargs):
    begun[host] += 1
    if host.endswith(("dead.example", "slow.example")):
        silent.acquire()
        silent.release()
    if host.endswith("dead.example"):
        raise _socket.gaierror(_socket.EAI_AGAIN, "no response")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

_socket.getaddrinfo = getaddrinfo

def attempt(host):
    try:
        CheckedBackend(Policy()).connect_tcp(host, 443, timeout=2)
    except httpcore2.ConnectTimeout:
        return True

endpoints = [f"{n}.dead.example" for n in range(MAX_ENDPOINTS)]
attempts = [gevent.spawn(attempt, host) for host in endpoints * 5]
gevent.joinall(attempts, raise_error=True)
assert all(one.value for one in attempts)
"""


def output(program: str) -> str:
    command = [sys.executable, "-c", SILENT_NAME_SERVER + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_a_silent_name_server_of_an_org_delays_no_other_lookup() -> None:
    """Names of the operator and of other orgs are found while one org's are looked up in vain."""
    shown = output("""
with gevent.Timeout(60):
    print(socket.getaddrinfo("vendor.example", 443)[0][4], flush=True)
    print(egress.resolve("receiver.example", 443, Policy(), look_up))
respond()
""")
    assert "('8.8.8.8', 443)\n['8.8.8.8']\n" == shown


def test_a_lookup_that_was_given_up_is_not_made_later() -> None:
    """Only those that had begun are made to their end, few of each name; their errors are not
    printed.
    """
    shown = output("""
before = dict(begun)
respond()
with gevent.Timeout(60):
    while len(threading.enumerate()) > 1:
        time.sleep(0.01)
print(begun == before, {*before.values()}, len(before) == MAX_ENDPOINTS)
""")
    assert f"True {{{MAX_LOOKUPS_OF_NAME}}} True\n" == shown


def test_an_answer_is_shared_by_all_that_wait_for_it() -> None:
    """A popular name is not limited to its lookups in progress; a later caller has one anew."""
    shown = output("""
callers = [gevent.spawn(look_up, "slow.example", 443) for _ in range(100)]
other = gevent.spawn(look_up, "slow.example", 80)
with gevent.Timeout(60):
    while begun["slow.example"] < 2:
        time.sleep(0.01)
    respond()
    gevent.joinall([*callers, other], raise_error=True)
print({one.value[0][4] for one in callers}, other.value[0][4], begun["slow.example"])
look_up("slow.example", 443)
print(begun["slow.example"])
""")
    found = "{('8.8.8.8', 443)} ('8.8.8.8', 80)"
    assert f"{found} {MAX_LOOKUPS_OF_NAME + 1}\n{MAX_LOOKUPS_OF_NAME + 2}\n" == shown
