"""Images and files in the messages of chat completions."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from arkloop.worker.contract.attachments import Attachment, Part, TextPart
from arkloop.worker.contract.messages import Message, ToolMessage
from arkloop.worker.providers.image_detail import AUTO


def content_of(parts: Iterable[Part], detail: str) -> list[dict[str, Any]]:
    """Return the content of a user's message."""
    return [_content(part, detail) for part in parts]


def images_after(messages: Iterable[Message], detail: str) -> Iterator[Message | dict[str, Any]]:
    """Yield the messages, and after the results of a turn a user's message with their images.

    The results themselves can only be text here.
    """
    for is_result, group in groupby(messages, key=lambda m: isinstance(m, ToolMessage)):
        results = list(group)
        yield from results
        images = [
            part for m in results if isinstance(m, ToolMessage) and is_result for part in m.parts
        ]
        if images:
            note = TextPart("The images that the tools returned, in the order of their results:")
            yield {"role": "user", "content": content_of([note, *images], detail)}


def users_joined(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Join neighbouring messages of the user, as a failed run or a summary leaves them.

    Chat templates that demand alternating roles, such as those of Gemma and Mistral, refuse them.
    """
    for role, group in groupby(messages, key=lambda message: message["role"]):
        same = list(group)
        if role != "user" or len(same) == 1:
            yield from same
            continue
        contents = [message["content"] for message in same]
        if all(isinstance(content, str) for content in contents):
            yield {"role": role, "content": "\n\n".join(filter(None, contents))}
        else:
            yield {"role": role, "content": [part for one in contents for part in _parts_of(one)]}


def _parts_of(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


def _content(part: Part, detail: str) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case Attachment(kind="image"):
            # `auto` is the default, and not every server knows the field.
            chosen = {} if detail == AUTO else {"detail": detail}
            return {"type": "image_url", "image_url": {"url": part.address, **chosen}}
        case Attachment(url=None):
            file = {"filename": part.name, "file_data": part.address}
            return {"type": "file", "file": file}
        case _:  # this API accepts no files by URL
            return {"type": "text", "text": f"[{part.label} omitted: it was not uploaded]"}
