"""What it brings that weights lie in pages which the second-level cache holds: `sorl-bench placement`.

That cache is found by physical address. Which of its parts a page falls into is chance, and some get more
pages than they hold. A policy's actor is put into pages that share the parts out (csrc/placement.hpp).
"""

import argparse
import json
import statistics
from collections.abc import Sequence

from sorl_fast.atomic import write_bytes
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from .peers import import_bench

# of the actor of 512 x 4: 8-bit weights, then bf16; half of it in float32, a thread's of two; too many
SIZES = {"0.8 MiB": 820 << 10, "1.6 MiB": 1640 << 10, "1.75 MiB": 1792 << 10, "3.2 MiB": 3280 << 10}


def run(argv: Sequence[str]) -> int:
    """Run the benchmark's command line; return 0."""
    parser = argparse.ArgumentParser(prog="sorl-bench placement", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=path_argument, help="write the figures here")
    parser.add_argument("--times", type=int, default=9, help="of each size so many regions (9)")
    args = parser.parse_args(argv)
    if not 1 <= args.times <= 1000:
        raise BadInput(f"times is {args.times}, but must be in [1, 1000]. Set --times")
    bench = import_bench()
    rows = []
    print(
        "read again and again, GB/s: as the pages came, and placed; of the regions least, median, most"
    )
    for name, size in SIZES.items():
        pairs = [bench.placed_rates(size) for _ in range(args.times)]
        before, after = (sorted(rate / 1e9 for rate in rates) for rates in zip(*pairs, strict=True))
        rows.append({"bytes": size, "gb_per_s": before, "placed_gb_per_s": after})
        ends = [f"{min(x):5.0f} {statistics.median(x):5.0f} {max(x):5.0f}" for x in (before, after)]
        print(f"  {name:9s} {ends[0]}   placed {ends[1]}", flush=True)
    if args.json:
        write_bytes(args.json, json.dumps({"rows": rows}, indent=1).encode())
    return 0
