"""Calls of HTTP tools while the worker or the tool's server is killed."""
