"""Webhooks while receivers misbehave, and workers and web servers are killed."""
