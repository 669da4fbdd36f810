"""Reserved for compaction of the log: retention, plan, rewrite, install. None of it exists yet."""
