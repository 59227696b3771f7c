"""The test kit for authors of plugins, who import it as `arkloop.testing`."""
