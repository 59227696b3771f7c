"""Routes that match requests, and build URLs only on request."""

from collections.abc import Callable
from functools import cache
from typing import Any

from werkzeug.routing import Rule


class MatchingRule(Rule):
    """A rule that compiles the functions which build its URL when the first one is called.

    Nothing in the service calls them, and to compile those of all rules takes longer than
    everything else that the app does at its start.
    """

    # A private method: the version is pinned, and a test counts what is compiled.
    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        compiled = cache(lambda: super(MatchingRule, self)._compile_builder(append_unknown))

        def build(rule: Rule, **values: Any) -> tuple[str, str]:
            return compiled()(rule, **values)

        return build
