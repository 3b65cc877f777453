"""All benchmarks, one after the other: ``python -m benchmarks``, under 30 minutes on two cores.

python -m benchmarks            # the tables of docs/benchmarks.md
python -m benchmarks --fast     # a smoke test: one small case of each
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence

# Those whose module exists run, in this order.
NAMES = (
    "quality",
    "certified",
    "cost",
    "time_to_objective",
    "versus",
    "front_page",
    "grid_jko",
    "scale",
    "compiled",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run every benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a smoke test of each")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)}; none: all")
    args = parser.parse_args(argv)
    for name in args.names or NAMES:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            continue
        print(f"\n## python -m benchmarks.{name}\n", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        module.main(["--fast"] if args.fast else [])


if __name__ == "__main__":
    main()
