"""The verdict on a journal: which promises were broken."""
