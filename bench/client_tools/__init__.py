"""Client tools under kill -9, and what their calls cost."""
