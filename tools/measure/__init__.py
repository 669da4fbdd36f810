"""Short measurements of this machine: a store against a plain file and a copy in memory."""
