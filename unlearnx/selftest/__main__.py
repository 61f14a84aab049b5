"""``python -m unlearnx.selftest``: exit status 0 if every op passes, 1 if one fails."""

import sys

from unlearnx.selftest import run

sys.exit(0 if run() else 1)
