"""Compaction of the log: what to keep, plan, rewrite, install. Not part of this release."""
