"""Settings of which nothing is set: a test of one of them replaces it."""

from arkloop.shared.config import Settings

BLANK = Settings(database_url="", redis_url="", broker_url="", jwt_secret="")
