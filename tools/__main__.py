"""The command line without its console script: ``python -m mldb.tools``."""

import sys

from mldb.tools.cli.main import main

sys.exit(main())
