"""Small disks, whole history: what deduplication, patches, deltas and compaction save and cost."""
