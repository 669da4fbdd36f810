"""Short scripts of users who know the README and the docstrings, one for each expectation.

One is run by hand with ``python -m tests.newcomer.row_01_load_hooks``. It makes its store in a
temporary folder, prints what a user would look at, and asserts that it is right. ``EXPECTED`` is
what it prints; ``test_newcomer.py`` runs all of them and compares.
"""
