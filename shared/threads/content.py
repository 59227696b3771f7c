"""The content of a message: a text, or a list of parts, some of which refer to files.

A part is `{"type": "text", "text": …}`, or `{"type": "image" | "file"}` with either `file_id` or
`url`. The thread keeps the list as it was given, with facts about the files, and a text that
describes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from arkloop.shared.actors import Actor
from arkloop.shared.errors import Forbidden, InvalidRequest
from arkloop.shared.files import files, media_types
from arkloop.shared.threads import earlier_lines

#: Bytes of the files that one message may refer to, together: vendors refuse larger requests.
MAX_FILE_BYTES = 20 * 1024 * 1024
#: Of one text file: models read it as text.
MAX_TEXT_FILE_BYTES = 1024 * 1024

Part = Mapping[str, Any]
#: Members of a stored part that the client has not given. The digest is not one of `file`: workers
#: of the release before refuse members there that they do not know.
_FACTS = ("file", "sha256")


@dataclass(frozen=True, slots=True)
class Content:
    """`parts` is None where the content was given as a text."""

    text: str
    parts: Sequence[Part] | None = None

    @classmethod
    def of(cls, given: "str | Sequence[Part]") -> "Content":
        return cls(given) if isinstance(given, str) else cls(described(given), given)


def described(parts: Sequence[Part]) -> str:
    """Return the texts of the parts, with a note in place of each of the others."""
    return "\n".join(
        part["text"]
        if part["type"] == "text"
        else f"[{part['type']}: {part.get('file_id') or part.get('url')}]"
        for part in parts
    )


def as_given(stored: Sequence[Part]) -> list[Part]:
    """Return the parts of a message as the client gave them."""
    return [{name: part[name] for name in part if name not in _FACTS} for part in stored]


def own_content(message: Row[Any]) -> Content:
    """Return the content of a message as its author gave it, without a transcript."""
    if message.parts is None:
        return Content(earlier_lines.own_text(message.content, message.metadata))
    return Content.of(as_given(earlier_lines.own_parts(message.parts, message.metadata)))


def stored_parts(sql: Connection, actor: Actor, content: Content) -> list[Part] | None:
    """Return the parts as they are stored: with `file`, what is known about the file of each, and
    its `sha256`, by which messages are compared after the file is deleted, too.

    None where the content is a text.

    Raises:
        Forbidden: a part refers to a file, and the actor may not read files.
        InvalidRequest: the org lacks a file, or it is not of the kind that its part says; details
            name each part that is wrong.
    """
    if content.parts is None:
        return None
    wanted = {
        number: (part["type"], UUID(part["file_id"]))
        for number, part in enumerate(content.parts)
        if "file_id" in part
    }
    if not wanted:
        return list(content.parts)
    if "data.files.read" not in actor.permissions:
        raise Forbidden("Referring to a file requires the scope data.files.read.")
    file_ids = {file_id for _, file_id in wanted.values()}
    rows = files.of_ids(sql, actor.org_id, file_ids, end_user_id=actor.end_user_id)
    found = {row.id: row for row in rows}
    problems = {}
    for number, (kind, file_id) in wanted.items():
        if (why := _problem(kind, found.get(file_id))) is not None:
            problems[f"content.{number}.file_id"] = [why]
    if not problems and sum(found[id_].size for _, id_ in wanted.values()) > MAX_FILE_BYTES:
        problems["content"] = [f"must refer to at most {MAX_FILE_BYTES:,} bytes of files"]
    if problems:
        raise InvalidRequest(**problems)
    return [
        {**part, **_facts(found[wanted[number][1]])} if number in wanted else part
        for number, part in enumerate(content.parts)
    ]


def acceptable(
    sql: Connection, actor: Actor, parts: Sequence[Part], more: Sequence[Part]
) -> list[Part]:
    """Return those of the further parts that a message with these parts may have as well.

    Where their files have too many bytes together, the first of them.
    """
    ids = {UUID(part["file_id"]) for part in (*parts, *more) if "file_id" in part}
    rows: list[Row[Any]] = []
    if ids and "data.files.read" in actor.permissions:
        rows = files.of_ids(sql, actor.org_id, ids, end_user_id=actor.end_user_id)
    found = {str(row.id): row for row in rows}
    size = sum(found[part["file_id"]].size for part in parts if part.get("file_id") in found)
    fitting = []
    for part in more:
        if "file_id" in part:
            file = found.get(part["file_id"])
            if file is None or _problem(part["type"], file) is not None:
                continue
            if size + file.size > MAX_FILE_BYTES:
                continue
            size += file.size
        fitting.append(part)
    return fitting


def _facts(file: Row[Any]) -> dict[str, Any]:
    shown = {"name": file.name, "media_type": file.media_type, "size": file.size}
    return {"file": shown, "sha256": file.sha256}


def _problem(kind: str, file: Any) -> str | None:
    if file is None:
        return "file not found"
    is_image = file.media_type in media_types.IMAGES
    if is_image != (kind == "image"):
        return f"is {file.media_type}: its part must be of type {'image' if is_image else 'file'}"
    if file.media_type == media_types.TEXT and file.size > MAX_TEXT_FILE_BYTES:
        return f"text files may have at most {MAX_TEXT_FILE_BYTES:,} bytes here"
    return None
