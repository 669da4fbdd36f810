"""mldb measured side by side with what a user would pick instead, and with the machine's limits.

``python -m tests.bench`` runs the workloads in one go. Every ratio it prints compares medians of
interleaved rounds of that same run; absolute rates belong to the machine and the day.

What keeps the figures honest: fresh files in every round, one untimed warm-up, files removed
outside the timed region and the disk settled with ``os.sync``, the order of contenders drawn anew
every round, data read back and compared, reads in a fresh process each, and durable meaning fsync
of the file and of its folder inside the time for everyone.
"""
