"""The order in which processes take files."""

from types import SimpleNamespace
from typing import Any

from tests.both_ends import scheduler

FILES = [f"tests/test_{letter}.py" for letter in "abcdef"]
TESTS = [f"{file}::test_{number}" for file in FILES for number in range(3)]


class Node:
    """A process as far as the scheduler uses one; it notes the files that it is sent."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.tests: list[str] = []

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.tests += [TESTS[number] for number in numbers]

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(test.partition("::")[0] for test in self.tests))


def test_one_process_takes_the_first_files_and_others_the_last_ones() -> None:
    """Both go on where they are until they meet: each test is run once, with those of its file."""
    order: Any = scheduler(_config("loadfile"), None)
    nodes = [Node("gw0"), Node("gw1")]
    for node in nodes:
        order.add_node(node)
        order.add_node_collection(node, TESTS)
    order.schedule()
    done = [0, 0]
    while order.has_pending:
        for number, node in enumerate(nodes):
            if done[number] < len(node.tests):
                order.mark_test_complete(node, TESTS.index(node.tests[done[number]]))
                done[number] += 1

    assert [FILES[:3], FILES[:2:-1]] == [node.files for node in nodes]
    assert sorted(TESTS) == sorted(nodes[0].tests + nodes[1].tests)


def test_other_distributions_keep_their_order() -> None:
    """`--dist load` is what pytest-xdist makes of it."""
    assert None is scheduler(_config("load"), None)


def _config(dist: str) -> Any:
    """Return what a scheduler reads of a configuration: that of two processes."""
    values = {"dist": dist, "tx": ["2*popen"]}
    return SimpleNamespace(getvalue=values.get, option=SimpleNamespace(loadscopereorder=False))
