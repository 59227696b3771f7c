"""Calls of MCP tools while the server, the sidecar or the worker is killed."""
