"""What operations cost as a store grows: each figure at several sizes, and the slope between them.

``python -m tests.bench_growth`` grows stores with many names, versions, segments, rewinds and
blocks, and times what should not notice. A *slope* is the exponent of cost against size, fitted on
logarithms: 0 costs the same at any size, 1 grows with the size, 2 with its square. A figure that
has a bound is held to it at the size that the bound names.

A section is a module with ``rows(quick)``; each measures by itself, in folders of its own.
"""
