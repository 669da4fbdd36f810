"""Run it: ``python -m mldb.gpu.selftest``."""

import sys

from mldb.gpu.selftest.items import main

sys.exit(main())
