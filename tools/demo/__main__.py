"""Run it: ``python -m mldb.tools.demo``."""

import sys

from mldb.tools.demo.main import main

sys.exit(main())
