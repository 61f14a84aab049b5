"""``python -m unlearnx.selftest``: exit status 0 where every op is right, 1 where one is not."""

import sys

from unlearnx.selftest import run

sys.exit(0 if run() else 1)
