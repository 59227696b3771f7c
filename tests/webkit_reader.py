"""WebKit's reader of event streams (EventSource.cpp), which keeps what it has read of a frame."""


def webkit_messages(keeping: str, stream: str, last_id: str = "1") -> list[tuple[str, str]]:
    """Return (lastEventId, data) for each `onmessage` of a stream.

    `keeping` is what was read of a frame before the connection broke; `last_id` was the id then.
    """
    messages: list[tuple[str, str]] = []
    data, kind, new_id = "", "", None
    for line in (keeping + stream).split("\n")[:-1]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                last_id, new_id = last_id if new_id is None else new_id, None
                if kind in ("", "message"):
                    messages.append((last_id, data.removesuffix("\n")))
            data = kind = ""
        elif name == "data":
            data += value + "\n"
        elif name == "event":
            kind = value
        elif name == "id":
            new_id = value
    return messages
