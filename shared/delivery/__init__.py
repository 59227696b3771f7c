"""Webhooks: the endpoints of an org, and what is delivered to them."""
