"""The figures of context handling: cached prefixes, costs, and threads of any length and text."""
