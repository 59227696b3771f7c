"""Messages as Celery sends them, for tasks that differ in nothing but an id.

Celery and kombu take half a millisecond of CPU to make a message, which is more than all else that
a web process does for a run once its request is read. So they make one for each kind of task, and
its copies get their ids by replacing text.
"""

import base64
import json
import threading
from uuid import UUID, uuid4

from celery import Celery

_TASK, _ID, _BODY, _TAG = "(task)", "(id)", "(body)", "(tag)"
#: kombu's transport in memory has one queue of a name for the whole process.
_lock = threading.Lock()


class TaskMessage:
    """The message of a kind of task, as it lies in a list of Redis."""

    def __init__(self, celery: Celery, task: str) -> None:
        with _lock, celery.connection_for_write("memory://") as connection:
            channel = connection.default_channel
            celery.send_task(
                task,
                args=[_ID],
                task_id=_TASK,
                ignore_result=True,
                retry=False,
                producer=celery.amqp.Producer(channel, auto_declare=False),
            )
            message = channel._get(celery.conf.task_default_queue)
        self._body = base64.b64decode(message["body"]).decode()
        message["body"] = _BODY
        message["properties"]["delivery_tag"] = _TAG
        self.queue: str = celery.conf.task_default_queue
        self._text = json.dumps(message)

    def of(self, id_: UUID) -> str:
        """Return the message of a new task with this argument."""
        body = self._body.replace(_ID, str(id_)).encode()
        return (
            self._text.replace(_BODY, base64.b64encode(body).decode())
            .replace(_ID, str(id_))
            .replace(_TASK, str(uuid4()))
            .replace(_TAG, str(uuid4()))
        )
