"""The search for tools by words, for runs whose servers have more than a model should read."""

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.tools import CallInfo, Tool, ToolFailed, tool

NAME = "search_tools"
MAX_QUERY_CHARACTERS = 500
MAX_QUERY_WORDS = 32
MAX_FOUND = 20
#: Of a description, the part that is searched, and the part that the result has.
SEARCHED_CHARACTERS = 2000
SHOWN_CHARACTERS = 200
#: Matches of a word: as a word of the name, within it, and likewise of the description.
_WEIGHTS = (4.0, 3.0, 2.0, 1.0)
_WORD = re.compile(r"[^\W_]+")
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@tool(idempotent=True)
def search_tools(
    context: ToolContext,
    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_QUERY_CHARACTERS,
            description="Words for what the tool should do, such as: create calendar event.",
        ),
    ],
    info: CallInfo,
    limit: Annotated[int, Field(ge=1, le=MAX_FOUND, description="The most tools to find.")] = 8,
) -> str:
    """Search tools by words in their names and descriptions. The tools that are found can be called
    from the next turn on.
    """
    if not info.searchable:
        raise ToolFailed("There are no tools to search.")
    with cpu_slice():
        ranked = rank(info.searchable, query)
    if not ranked:
        raise ToolFailed("No tool matches. Search again with other words.")
    shown = [
        {"name": spec.name, "description": spec.description[:SHOWN_CHARACTERS]}
        for spec in ranked[:limit]
    ]
    return json.dumps({"tools": shown, "further_matches": len(ranked) - len(shown)})


def found_names(output: str) -> list[str]:
    """Return the names that a result of the tool has, in its order; none of an error."""
    try:
        return [shown["name"] for shown in json.loads(output)["tools"]]
    except (ValueError, TypeError, KeyError):
        return []


def naming(search: Tool, servers: Collection[str], tools: int) -> Tool:
    """Add to the description of `search_tools` what there is to search."""
    about = f"There are {tools} tools of these servers: {', '.join(sorted(servers))}."
    return replace(
        search, spec=replace(search.spec, description=f"{search.spec.description} {about}")
    )


def rank(specs: Collection[ToolSpec], query: str) -> Sequence[ToolSpec]:
    """Return the tools that match a word of the query, the best first.

    A match counts more if it is in the name, and the fewer tools have the word.
    """
    words = list(dict.fromkeys(_words(query)))[:MAX_QUERY_WORDS]
    texts = [_Text(spec) for spec in specs]
    scores = [0.0] * len(texts)
    for word in words:
        matches = [text.match(word) for text in texts]
        count = sum(match > 0 for match in matches)
        if count:
            rarity = math.log(1 + len(texts) / count)
            scores = [score + match * rarity for score, match in zip(scores, matches, strict=True)]
    found = [(score, spec) for score, spec in zip(scores, specs, strict=True) if score > 0]
    return [spec for _, spec in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


class _Text:
    """The text of a tool in which words are looked for."""

    def __init__(self, spec: ToolSpec) -> None:
        self._parts = [
            (frozenset(words), " ".join(words))
            for words in (_words(spec.name), _words(spec.description[:SEARCHED_CHARACTERS]))
        ]

    def match(self, word: str) -> float:
        # Without its end a plural matches the singular.
        stem = word.removesuffix("s") if len(word) > len("abc") else word
        weights = iter(_WEIGHTS)
        for words, text in self._parts:
            as_word, within = next(weights), next(weights)
            if word in words:
                return as_word
            if stem in text:
                return within
        return 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(_CAMEL_CASE.sub(" ", text).lower())
