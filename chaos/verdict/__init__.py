"""What a journal shows: which promises were broken."""
