"""What compaction costs and gives back: sections of ``python -m tests.bench_compaction``."""
