"""All benchmarks, one after the other: ``python -m benchmarks``, under 30 minutes on two cores.

python -m benchmarks            # the tables of docs/benchmarks.md
python -m benchmarks --fast     # a smoke test: one small case of each
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence

# They run in this order.
NAMES = (
    "quality",
    "certified",
    "when_global",
    "proofs",
    "convex_peers",
    "cost",
    "minibatch",
    "time_to_objective",
    "dense_or_limited",
    "versus",
    "front_page",
    "grid_jko",
    "scale",
    "maps",
    "learned",
    "compiled",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a smoke test of each")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)}; none: all")
    args = parser.parse_args(argv)
    names, began = args.names or NAMES, time.perf_counter()
    for done, name in enumerate(names):
        passed = time.perf_counter() - began
        left = f", about {passed / done * (len(names) - done) / 60:.0f} min left" if done else ""
        print(f"[{done + 1}/{len(names)}]{left}", file=sys.stderr, flush=True)
        print(f"\n## python -m benchmarks.{name}\n", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        module.main(["--fast"] if args.fast else [])


if __name__ == "__main__":
    main()
