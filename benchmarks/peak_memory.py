"""Peak memory of one way to the Fisher diagonal above that of the model's own forward and backward pass, in MiB.

    python -m benchmarks.peak_memory MODEL BATCH METHOD

Prints two numbers: the peak of forward and backward above the state before, and of METHOD (ours, or a rival's name)
above the former. Linux only: the high-water mark of resident memory is reset between the two.
"""

import re
import sys
from pathlib import Path

from torch.nn import functional as F

from benchmarks.fisher_cases import RIVALS, build, forward_backward
from unlearnx.curvature import fisher_diagonal


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def status(key):
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main(name, n, method):
    model, x, y = build(name, int(n))
    if method == "ours":

        def run(model, x, y):
            return lambda: fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=len(x))
    else:
        run = RIVALS[method]
    forward_backward(model, x[:2], y[:2])()
    run(model, x[:2], y[:2])()
    before = status("VmRSS")
    reset_peak()
    forward_backward(model, x, y)()
    own = status("VmHWM")
    reset_peak()
    run(model, x, y)()
    print(round(own - before), round(status("VmHWM") - own))


if __name__ == "__main__":
    main(*sys.argv[1:])
