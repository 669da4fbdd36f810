"""The lake measured side by side with PyTorch's own loaders, Lance, and the machine's limits.

``python -m tests.bench_lake`` writes the rows once, to a lake and to a plain file, and runs the
workloads S1 to S9 over them. It measures as ``tests.bench`` does: every ratio compares medians of
interleaved rounds of one run. A contender lives in a process of its own for all its rounds, so that
nobody's threads slow another; what it reads is in the page cache. Every pass ends in one reused
buffer, so that whoever hands out views pays for the bytes, and is summed once, untimed, to show
that all rows came.
"""
