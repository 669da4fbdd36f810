"""Counters to numbers: Philox and the draws made of it. No I/O."""
