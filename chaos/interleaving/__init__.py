"""Random interleavings of clients, a worker and the sweep, which stop before each statement."""
