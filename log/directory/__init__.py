"""The directory: merged indexes over runs of sealed segments, so that a lookup touches a few parts.

It is derived from the footers and may be deleted at any time. FORMAT.md section 6.
"""
