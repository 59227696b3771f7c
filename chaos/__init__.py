"""Faults in the real system, and what a client must never see because of them."""
