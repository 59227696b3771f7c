"""The proof that parallel runs never overspend a budget together, whatever dies among them."""
