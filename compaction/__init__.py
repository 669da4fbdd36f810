"""Compaction: ``soc`` merges splats. Of the log (retention, plan, rewrite, install): reserved."""
