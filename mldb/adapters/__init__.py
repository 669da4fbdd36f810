"""mldb inside the loops of others: each module here speaks the interface of one framework.

They stand above everything else and use only what is public. None is imported by ``import mldb``,
and each imports its framework, in the versions that its docstring names.
"""
