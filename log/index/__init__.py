"""What the log holds, by key and by commit: in memory, in mapped columns, along lineages."""
