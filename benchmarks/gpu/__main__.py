# SPDX-License-Identifier: Apache-2.0
"""Everything there is to measure of RedNets on this machine's GPU, in one bounded command.

    python benchmarks/gpu --out out/gpu                          # about 25 minutes
    python benchmarks/gpu --out out/gpu --minutes 9 --only machine,check,networks
    python benchmarks/gpu --out out/gpu --minutes 9 --only operators,layers,tune,tuned
    python benchmarks/gpu --out out/gpu --only draw              # tables and picture again, from the results
    python benchmarks/gpu --out out/cpu --target llvm --models rednet_digits --image-size 32 --batch 1 --dtypes float32

The steps, the most valuable first: machine (its roofs), check (every kernel, against plain ones), networks (beside
torch), operators (every involution of the first network), layers (every kernel of it), tune, tuned (network and layers
with the records), draw. Each is a process with a time limit that writes every row to OUT/results.json as it comes;
called again with the same OUT, it measures what is missing. OUT/tuning_logs is what `compile --tuning-logs` takes.
Nothing else may run on the machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parent.parent
# this folder itself is what Python puts first: it would hide modules of the same names; worker processes look here, too
sys.path[0] = str(_BENCHMARKS)
sys.path.append(str(_BENCHMARKS.parent))
_FOUND = [str(_BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")]), str(_BENCHMARKS.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.pathsep.join(_FOUND).split(os.pathsep)))

from gpu.driver import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__)
