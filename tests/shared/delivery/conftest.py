"""The settings of deliveries, for their tests."""

from dataclasses import replace

import pytest

from arkloop.shared.config import Settings


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """A first pause that is longer than a test, however slow the machine is."""
    _, *later = settings.webhook_retry_seconds
    return replace(settings, webhook_retry_seconds=(120, *later))
