"""Runs that tests stream."""

HELLO = b": ok\n"
RETRY = b"retry: 1000\n"
