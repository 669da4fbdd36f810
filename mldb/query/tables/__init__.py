"""The tables of queries: which columns each has at a moment, and its rows."""
