"""Queries: what a text asks for, what the store answers.

``parsed`` says what a text comes to, ``rewrite`` gets there, over ``limits`` (how long, how deep),
``words`` (AS OF), ``grammar`` (sqlglot), ``allowed`` and ``functions`` (what may be used),
``short_form`` and ``scopes`` (which name is which column). All of that is pure: no file, no store.
"""
