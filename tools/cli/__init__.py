"""The command line ``mldb``: one module of ``commands`` for each command.

``main`` finds the command and turns errors into exit statuses, ``command`` opens the store and
splits the words of a call, ``output`` prints tables and JSON, ``values`` reads what users type,
``progress`` shows how far long work is. Nothing here is imported by a program that uses mldb.
"""
