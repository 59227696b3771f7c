"""An org's own tools, which are called by HTTP: each call is one signed POST."""
