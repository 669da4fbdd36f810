"""Rows on their way into a lake."""
