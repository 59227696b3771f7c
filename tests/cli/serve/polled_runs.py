"""A run as a poll brings it to an agent worker."""

from typing import Any

from arkloop.shared import ids

RUN_ID = str(ids.new_id())
RUN: dict[str, Any] = {
    **dict.fromkeys(("thread_id", "org_id", "run_id"), RUN_ID),
    **dict.fromkeys(("messages", "answers", "approvals", "begun"), ()),
    **dict.fromkeys(("end_user_id", "output_schema", "checkpoint")),
    "metadata": {},
    "model_settings": {},
    **dict.fromkeys(("instructions", "model"), ""),
    "trace_id": "0" * 32,
    "attempt": 1,
    "cancel_requested": False,
    "next_seq": 2,
}
