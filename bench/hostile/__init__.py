"""Requests that a hostile client would send, and what they do to the service."""
