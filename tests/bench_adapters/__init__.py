"""Adapters beside what their frameworks bring: ``python -m tests.bench_adapters``."""
