"""Tests and benchmarks import each other as packages of this folder.

The folder comes last on the path, behind site-packages: an installed unlearnx, which has the compiled part, is the one
that is tested, and not its sources beside it.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
