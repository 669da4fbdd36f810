"""The command line without its console script: ``python -m mldb.tools``."""

from mldb.tools.cli.main import run_process

run_process()
