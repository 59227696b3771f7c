"""Clients of the service, many and careful."""
