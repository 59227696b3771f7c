"""The messages for workers are those that Celery sends."""

import base64
import json
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest

from arkloop.shared.config import Settings
from arkloop.shared.storage import celery_app, queue
from arkloop.shared.storage.connections import connect_redis
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.outage import Outage

pytestmark = pytest.mark.processes


def parsed(text: str) -> dict[str, Any]:
    """Return the message with its body decoded."""
    message: dict[str, Any] = json.loads(text)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def test_a_message_is_as_celery_sends_it(settings: Settings) -> None:
    """Ours and Celery's own differ only in what is new in each message."""
    keys, run_id = Keys(), uuid4()
    keys.installation = uuid4().hex
    celery = celery_app.make_celery(settings)
    celery_app.name_queue(celery, keys)
    with connect_redis(settings.broker_url) as broker:
        queue.enqueue(broker, keys, Outage(1), queue.EXECUTE, [run_id])
        celery.send_task(queue.EXECUTE, args=[str(run_id)], ignore_result=True)
        sent = f"{keys.installation}:{celery.conf.task_default_queue}"
        theirs, ours = map(parsed, broker.lrange(sent, 0, -1))
        broker.delete(sent)

    assert theirs["headers"]["id"] != ours["headers"]["id"]
    own_of = {
        "headers": ("id", "root_id", "origin"),
        "properties": ("correlation_id", "reply_to", "delivery_tag"),
    }
    for part, names in own_of.items():
        for name in names:
            theirs[part].pop(name), ours[part].pop(name)
    assert theirs == ours


def test_each_message_has_its_own_ids(settings: Settings) -> None:
    """Runs and tasks of a group are not confused, and arrive in their order."""
    keys, run_ids = Keys(), [uuid4() for _ in range(3)]
    keys.installation = uuid4().hex
    with connect_redis(settings.broker_url) as broker:
        queue.enqueue(broker, keys, Outage(1), queue.EXECUTE, run_ids)
        sent = f"{keys.installation}:celery"
        messages = [parsed(broker.rpop(sent)) for _ in run_ids]

    assert [[str(run_id)] for run_id in run_ids] == [one["body"][0] for one in messages]
    assert 3 == len({one["headers"]["id"] for one in messages})
    assert 3 == len({one["properties"]["delivery_tag"] for one in messages})
    for one in messages:
        assert one["headers"]["id"] == one["properties"]["correlation_id"]


def test_a_process_that_only_enqueues_does_not_load_celery() -> None:
    """Web processes and the command line start without it."""
    loaded = "import sys, arkloop.api.app, arkloop.cli.main; print('celery' in sys.modules)"
    command = [sys.executable, "-c", loaded]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "False" == done.stdout.strip()
