"""A model of busy threads over the table that the service executes, explored state by state."""
