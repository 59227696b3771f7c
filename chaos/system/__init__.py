"""The real system under test, and the hands on it."""
