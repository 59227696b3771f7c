"""The files of a request for a response: those of its new messages of the user.

The model reads the messages before the last one as a transcript, so their files have to be sent
with the last one. What is wrong with a file of the last message is refused. Files of the others are
sent as far as they can be: clients keep a message that was refused, and send it in front of each
further one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from arkloop.api.http.content import MAX_PARTS
from arkloop.api.http.current import actor, connections
from arkloop.api.protocols import responses_input, responses_runs, sent_files
from arkloop.api.protocols.empty_texts import without_empty_texts
from arkloop.api.protocols.responses_content import is_name
from arkloop.api.protocols.responses_ids import ItemId
from arkloop.api.protocols.responses_input import MAX_ITEMS
from arkloop.shared.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    RunNotFound,
    ThreadNotFound,
)
from arkloop.shared.ids import parse_id
from arkloop.shared.runs import queries
from arkloop.shared.threads.content import Part, acceptable, own_content

#: The newest messages of a request among which those of its thread are looked for.
_MOST_COMPARED = 1_000
#: The base64 of a file and its name, if it has one.
Data = tuple[str, str | None]


def with_stored_files(value: Any) -> Any:
    """Return an input with the files stored that its new messages of the user have as base64.

    A file of a message before the last one that cannot be sent with it, or that the thread has in
    the message of a run that has failed, is replaced by a text. So is the data of a conversation
    that took place elsewhere, as the model reads it as text.

    Raises:
        InvalidRequest, Forbidden, BodyTooLarge, StorageUnavailable
    """
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        return value
    items, known = list(value), dict[Data, UUID]()
    new, elsewhere, follows = _messages(items)
    for place in elsewhere:
        items[place] = _with(
            items[place], lambda part: part if _data(part) is None else _noted(part)
        )
    if not new:
        return items
    last, *earlier = new
    said = without_empty_texts(_parts(items[last]), "input_text")
    sent_files.check_count(f"input[{last}].content", said)
    if follows is not None and any(_is_file(part) for at in earlier for part in _parts(items[at])):
        behind = _behind_known(items, earlier, follows)
        for place in earlier[behind:]:
            items[place] = _with(
                items[place], lambda part: _noted(part) if _is_file(part) else part
            )
        earlier = earlier[:behind]
    own = [part for part in _parts(items[last]) if _is_file(part)]
    stored = [
        _stored(f"input[{last}].content[{number}]", part, known)
        for number, part in enumerate(_parts(items[last]))
    ]
    if stored:
        items[last] = {**items[last], "content": stored}
    room = MAX_PARTS - max(len(stored), 1)
    wanted: list[tuple[str, Any]] = []
    for place in earlier:
        for number, part in reversed(list(enumerate(_parts(items[place])))):
            is_new = _is_file(part) and part not in own and part not in [one for _, one in wanted]
            if is_new and len(wanted) < room:
                wanted.append((f"input[{place}].content[{number}]", part))
    sent = [*own, *_sendable(wanted, [part for part in stored if _is_file(part)], known)]

    def shown(part: Any) -> Any:
        if not _is_file(part):
            return part
        return _stored("", part, known) if part in sent else _noted(part)

    for place in earlier:
        items[place] = _with(items[place], shown)
    return items


def _messages(items: Sequence[Any]) -> tuple[list[int], list[int], ItemId | None]:
    """Return the places of the new messages of the user, the last one first, those of messages in a
    conversation elsewhere, and the item of a run that the new ones follow, if any.
    """
    new: list[int] = []
    elsewhere: list[int] = []
    found = new
    first, shown = responses_input.known(items)
    for place in range(len(items) - 1, -1, -1):
        item = items[place]
        if not isinstance(item, dict):
            continue
        # The server has the messages before the first new item, or reads them as text.
        if place < first or item.get("role") == "assistant":
            found = elsewhere
        if item.get("role") == "user":
            found.append(place)
    return new, elsewhere, shown


def _behind_known(items: Sequence[Any], earlier: Sequence[int], shown: ItemId) -> int:
    """Return how many of these messages, the last one first, come behind those of the thread.

    A client has no item of a run that has failed, but the thread has its message.
    """
    with connections().reading() as sql:
        try:
            run = queries.get(sql, actor(), shown.run_id)
            later = [
                own.parts or [{"type": "text", "text": own.text}]
                for own in responses_runs.said_after(sql, run, shown.seq)
            ]
        except (RunNotFound, ThreadNotFound):
            return len(earlier)
        digests = sent_files.digests_of(sql, later)
    if not later:
        return len(earlier)
    sent = [_compared(items[place].get("content")) for place in earlier[:_MOST_COMPARED]]
    behind = len(earlier)
    for parts in later:
        for number in range(min(behind, len(sent)) - 1, -1, -1):
            if _ends_with(parts, sent[number], digests):
                behind = number
                break
    return behind


def before_last(items: Any) -> list[tuple[int, list[Part]]]:
    """Return the new messages of the user before the last one with their places, in their order."""
    if not isinstance(items, list):
        return []
    _, *earlier = _messages(items)[0] or [0]
    compared = reversed(earlier[:_MOST_COMPARED])
    return [(place, _compared(items[place].get("content"))) for place in compared]


def place_of(
    sql: Connection, sent: Sequence[tuple[int, Sequence[Part]]], message: Row[Any], *, after: int
) -> int | None:
    """Return the first place after this one at which a message of a request is this one of the
    thread; None without one.
    """
    own = own_content(message)
    parts = own.parts or [{"type": "text", "text": own.text}]
    digests = sent_files.digests_of(sql, [parts])
    for place, said in sent:
        if place > after and _ends_with(parts, said, digests):
            return place
    return None


def _compared(content: Any) -> list[Part]:
    """Return the parts of a message as threads have them, with a digest in place of data."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[Part] = []
    said = without_empty_texts(content if isinstance(content, list) else [], "input_text")
    for _, part in said:
        if (data := _data(part)) is not None:
            kind = part["type"].removeprefix("input_")
            parts.append({"type": kind, "sha256": sent_files.digest(data[0])})
        elif isinstance(part, dict) and part.get("type") == "input_text":
            parts.append({"type": "text", "text": part.get("text")})
        else:
            parts.append(_as_stored(part))
    return parts


def _ends_with(parts: Sequence[Part], sent: Sequence[Part], digests: Mapping[str, str]) -> bool:
    """Return whether a message of the thread is this one, with files of others in front of it."""
    if not 1 <= len(sent) <= len(parts):
        return False
    return all(
        own == part
        or own == {"type": part["type"], "sha256": digests.get(part.get("file_id", ""), "")}
        for part, own in zip(parts[-len(sent) :], sent, strict=True)
    )


def _sendable(
    wanted: Sequence[tuple[str, Any]], own: Sequence[Any], known: dict[Data, UUID]
) -> list[Any]:
    """Store the data of parts with their names, and return those that a message may have as well
    as its own.
    """
    ready: list[tuple[Any, Part]] = []
    for name, part in wanted:
        try:
            ready.append((part, _as_stored(_stored(name, part, known))))
        except (InvalidRequest, Forbidden, BodyTooLarge):
            continue
    if not ready:
        return []
    with connections().reading() as sql:
        more = [part for _, part in ready]
        fitting = acceptable(sql, actor(), [_as_stored(part) for part in own], more)
    refused = [sent for sent, part in ready if part not in fitting]
    # The same data may be a file of another part, which is sent.
    used = {part.get("file_id") for part in (*own, *fitting)}
    of_data = {data for part in refused if (data := _data(part)) is not None}
    if unused := [data for data in of_data if str(known[data]) not in used]:
        sent_files.discard([known.pop(data) for data in unused])
    return [sent for sent, _ in ready if sent not in refused]


def _parts(item: Mapping[str, Any]) -> list[Any]:
    content = item.get("content")
    return content if isinstance(content, list) else []


def _with(item: Mapping[str, Any], change: Callable[[Any], Any]) -> Mapping[str, Any]:
    """Return the message with each of its parts changed."""
    if not isinstance(item.get("content"), list):
        return item
    return {**item, "content": [change(part) for part in _parts(item)]}


def _stored(name: str, part: Any, known: dict[Data, UUID]) -> Any:
    """Store the data of a part, unless the request has had it: it is `known` then."""
    if (found := _data(part)) is None:
        return part
    if found not in known:
        is_image = part["type"] == "input_image"
        known[found] = sent_files.stored(name, *found, is_image=is_image)
    return {"type": part["type"], "file_id": str(known[found])}


def _noted(part: Any) -> Any:
    """Return a text in place of a part with a file."""
    if (found := _data(part)) is None:
        stored = _as_stored(part)
        name = stored.get("file_id") or stored.get("url")
    else:
        _, name = found
    kind = part["type"].removeprefix("input_")
    return {"type": "input_text", "text": f"[{kind}: {name}]" if is_name(name) else f"[{kind}]"}


def _is_file(part: Any) -> bool:
    """Return whether a part has a file; what is malformed is refused where the input is read."""
    return _data(part) is not None or _as_stored(part) != {}


def _as_stored(part: Any) -> Part:
    """Return a part without data as threads have it, and an empty one if it refers to no file."""
    match part:
        case {"type": "input_image" | "input_file", "file_id": str(file_id)} if parse_id(file_id):
            return {"type": part["type"].removeprefix("input_"), "file_id": file_id}
        case {"type": "input_image", "image_url": str(url)} if not url.startswith("data:"):
            return {"type": "image", "url": url}
        case {"type": "input_file", "file_url": str(url)}:
            return {"type": "file", "url": url}
    return {}


def _data(part: Any) -> Data | None:
    """Return the base64 of a part and the name of its file, None for other parts."""
    match part:
        case {"type": "input_image", "image_url": str(data)} if data.startswith("data:"):
            return data, None
        case {"type": "input_file", "file_data": str(data), "filename": str(file_name)}:
            return data, file_name
        case {"type": "input_file", "file_data": str(data)}:
            return data, None
    return None
