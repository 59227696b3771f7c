"""Pieces of long work, and who does them: in a gevent worker other greenlets go on in between."""

import subprocess
import sys
import threading

import pytest

from arkloop.worker.contract.cpu_slices import cpu_slice
from tests.worker.tools.fetching import Server, page

pytestmark = pytest.mark.processes

HEAD = """
from gevent import monkey
monkey.patch_all()
import sys, threading, time
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import CallInfo, Tool, http_fetch
from tests.worker.recorded_run import RUN

def of(name, schema):
    return Tool(spec=ToolSpec(name, "", schema), function=None, idempotent=False)

"""
#: At the end of `work` of each piece, how often another greenlet had its turn until then.
TAIL = """
beats, seen, whole = 0, [], threading.Event()

def beat():
    global beats
    while not whole.is_set():
        time.sleep(0.001)
        beats += 1

def do(number):
    work(number)
    seen.append(beats)

threading.Thread(target=beat).start()
threads = [threading.Thread(target=do, args=(number,)) for number in range(COUNT)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
whole.set()
print(len(set(seen)))
"""
COUNT = 40

PLAIN = """
def work(number):
    with cpu_slice():
        end = time.monotonic() + 0.005
        while time.monotonic() < end:
            pass
"""
#: 2 KB that become 3,000 nodes; compiling them takes some 8 ms.
FIRST_CALLS = """
wide = {"properties": {f"p{number}": {"$ref": "#/$defs/narrow"} for number in range(30)}}
narrow = {"properties": {f"p{number}": {"type": "integer"} for number in range(40)}}
schema = {"properties": {"a": {"$ref": "#/$defs/wide"}}, "$defs": {"wide": wide, "narrow": narrow}}
tools = [of(f"tool-{number}", schema) for number in range(COUNT)]

def work(number):
    tools[number].check({})
"""
LONG_CHECKS = """
tool = of("tool", {"properties": {"a": {"items": {"allOf": [{"maximum": 9}] * 50}}}})
tool.check({})

def work(number):
    tool.check({"a": [1] * 4_000})
"""
PAGES = """
info = CallInfo.of(RUN, "call", egress=Policy.of(["127.0.0.2/32"]))

def work(number):
    http_fetch.http_fetch(StopSignal(), info, {"url": sys.argv[1]})
"""


@pytest.mark.parametrize("work", [PLAIN, FIRST_CALLS, LONG_CHECKS, PAGES])
def test_between_two_pieces_other_greenlets_go_on(work: str) -> None:
    """However many threads have one to do at the same time."""
    server = Server("127.0.0.2", {"/": page("<a href=x>y</a>" * 4_000, "text/html")})
    program = f"COUNT = {COUNT}\n{HEAD}{work}{TAIL}"
    command = [sys.executable, "-c", program, f"{server.url}/"]
    done = subprocess.run(command, capture_output=True, text=True)
    server.close()

    assert "" == done.stderr
    # Two may end at the same beat: one that has just begun its own millisecond.
    assert int(done.stdout) > COUNT // 2


MANY = """
order = []

def work(number):
    for _ in range(20):
        with cpu_slice():
            order.append(number)
"""


def test_who_has_many_pieces_to_do_is_no_longer_than_one_in_the_way() -> None:
    """This holds in greenlets, too, where a lock goes to its last holder, if that asks again."""
    program = f"COUNT = 2\n{HEAD}{MANY}{TAIL}print(sum(a != b for a, b in zip(order, order[1:])))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert "" == done.stderr
    assert int(done.stdout.split()[-1]) > 20


def test_a_piece_that_fails_makes_room_for_the_next() -> None:
    """A failing piece makes room for the next one, whatever it raises."""
    with pytest.raises(ValueError), cpu_slice():
        raise ValueError
    done: list[bool] = []

    def next_one() -> None:
        with cpu_slice():
            done.append(True)

    thread = threading.Thread(target=next_one)
    thread.start()
    thread.join()
    assert [True] == done


LONG_THREAD = """
import sys, threading, time
from dataclasses import replace
from arkloop.worker.agent.request_builder import RequestBuilder
from arkloop.worker.contract.messages import AssistantMessage, UserMessage
from tests.worker.agent.looping_models import after, agent_for
from tests.worker.recorded_run import RecordedRun

said = [UserMessage("Is it so?"), AssistantMessage("Yes.")] * int(sys.argv[1])
agent = after(agent_for({"say": "ok"}), *said)
beats, beating = 0, True

def beat():
    global beats
    while beating:
        time.sleep(0)
        beats += 1

threading.Thread(target=beat).start()
time.sleep(0.01)
before = beats
requests = RequestBuilder(agent, RecordedRun(), [])
request = requests.build(agent.chain.route)
first = beats
requests.build(agent.chain.route)
print(len(request.messages), first - before, beats - first)
beating = False
"""


@pytest.mark.parametrize("turns", [2_000, 20])
def test_others_go_on_while_the_request_of_a_long_thread_is_built(turns: int) -> None:
    """It took 20 ms of the process at a time; that of a short thread gives up no turn.

    Also where all messages are known from the call before: to pass over them takes a while, too.
    """
    program = f"from gevent import monkey\nmonkey.patch_all()\n{LONG_THREAD}"
    command = [sys.executable, "-c", program, str(turns)]
    done = subprocess.run(command, capture_output=True, text=True)

    assert "" == done.stderr
    messages, beats, beats_of_next = map(int, done.stdout.split())
    assert 2 * turns <= messages
    assert (beats > 0) == (beats_of_next > 0) == (turns > 1_000)
