"""Runs of custom agents while their worker is killed."""
