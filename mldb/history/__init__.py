"""What happened and what it means at a commit: events, as_of, snapshots, what is folded."""
