"""Dialects of the AI SDK's client, by its version."""

import pytest

from arkloop.api.protocols.ai_sdk_dialects import Dialect


@pytest.mark.parametrize("version", ["", "4.3.19", "x", "7.x", "latest", "7.0.1.2", "-7"])
def test_what_is_no_version_has_no_dialect(version: str) -> None:
    """Neither has a version before 5."""
    assert Dialect.of(version) is None


def test_versions_have_the_dialect_of_the_last_change_before_them() -> None:
    """`reset-step` is sent from 7.0.70 on, also to versions that are not there yet."""
    versions = ("6.9.99", "7", "7.0.69", "7.0.70", "7.0.173-beta.1", "8")
    dialects = [dialect for version in versions if (dialect := Dialect.of(version))]

    assert [False, False, False, True, True, True] == [dialect.resets for dialect in dialects]
