"""Writing: transactions, staging, the verbs, and the rules of a commit."""
