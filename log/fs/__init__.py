"""The only door to the operating system, for a real folder, in memory, and after a crash."""
