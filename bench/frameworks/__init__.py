"""The same agent in the built-in loop, in frameworks, and in LangGraph's own server."""
