"""What grows with a store: cost against size, for each figure with its limit."""
