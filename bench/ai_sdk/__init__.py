"""Pages of the AI SDK: cuts, kills and an emptied Redis, and what a projection costs."""
