"""The proof that the checker can fail: broken variants, each to be caught."""
