"""The proof that a run uses the most of its cap, never exceeds it, and leaves an answer."""
