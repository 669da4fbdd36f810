"""What several tests share: file systems that fail on purpose, models, workloads."""
