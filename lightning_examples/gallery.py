"""Run every example in full and collect its figures and tables: ``make gallery``.

python -m lightning_examples.gallery --to docs/gallery
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from lightning_examples import experiment

EXAMPLES = (
    "two_points",
    "sinus",
    "diabetes",
    "digits",
    "grid",
    "early",
    "inner",
    "initialisation",
    "sinus_gammas",
    "flow_vs_prox",
    "parameterisations",
    "distances",
    "certified",
    "tabular",
    "weight_decay",
    "mean_field",
    "deeper",
    "fokker_planck",
    "mean_field_langevin",
    "colours",
    "learn_energy",
    "meta_ot",
    "pinn",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=EXAMPLES, default=EXAMPLES, help="run these")
    parser.add_argument("--out", type=Path, default=Path("out/gallery"), help="work folder")
    parser.add_argument("--to", type=Path, help="copy figures and tables here; none: leave them")
    parser.add_argument("--fast", action="store_true", help="small runs")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    for done, name in enumerate(args.only, start=1):
        print(f"[{done}/{len(args.only)}] {name}")
        out = args.out / name
        flags = ["--fast"] if args.fast else []
        importlib.import_module(f"lightning_examples.{name}").main(["--out", str(out), *flags])
        print(experiment.so_far(name, done, len(args.only), time.perf_counter() - began))
        if args.to is not None:
            args.to.mkdir(parents=True, exist_ok=True)
            for file in sorted(path for path in out.iterdir() if path.is_file()):
                shutil.copy2(file, args.to / file.name)


if __name__ == "__main__":
    main()
