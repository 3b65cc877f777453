"""What a certificate costs and how loose its proof is, by samples, inputs (bias counted) and width.

    python -m benchmarks.proofs            # a few minutes; seconds are processor time, one thread

Normal data and labels. A step is one of BFGS (300 evaluations) from weights of scale 1e-2, gamma 1,
frozen output weights, certified afterwards; training is 300 steps of Adam with weight decay 0.05.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.table import Table, add_arguments
from torch_wprox import Certificate, MeanFieldLayer, WassersteinProx, certify, certify_training

F64 = torch.float64
STEPS = ((50, 2, 50), (150, 3, 50), (30, 10, 20), (50, 11, 40))
TRAININGS = ((50, 2, 50), (150, 3, 50), (50, 11, 40), (442, 11, 100))
WEIGHT_DECAY = 0.05


def case(n: int, D: int, m: int, form: str, scale: float) -> tuple[MeanFieldLayer, Tensor, Tensor]:
    """A layer with D - 1 inputs and a bias, and n samples."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, D - 1, generator=g, dtype=F64)
    y = torch.randn(n, 1, generator=g, dtype=F64)
    layer = MeanFieldLayer(
        D - 1,
        m,
        parameterization=form,  # type: ignore[arg-type]
        reduction="sum",
        init_scale=scale,
        generator=g,
        dtype=F64,
    )
    return layer, x, y


def step(n: int, D: int, m: int, seconds: float) -> list[str]:
    """Certify one step of BFGS."""
    layer, x, y = case(n, D, m, "signed", 1e-2)
    anchor = layer.particles.detach().clone()
    opt = WassersteinProx(layer.parameters(), 1.0, solver="bfgs", max_eval=300)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    began = time.process_time()
    found = certify(layer, closure, anchor, 1.0, proof_seconds=seconds)
    return line("step", n, D, m, found, time.process_time() - began)


def training(n: int, D: int, m: int, seconds: float) -> list[str]:
    """Certify a network that Adam trained."""
    layer, x, y = case(n, D, m, "joint", 0.1)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=WEIGHT_DECAY)

    def closure() -> Tensor:
        adam.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(300):
        adam.step(closure)
    began = time.process_time()
    found = certify_training(layer, closure, weight_decay=WEIGHT_DECAY, proof_seconds=seconds)
    return line("training", n, D, m, found, time.process_time() - began)


def line(kind: str, n: int, D: int, m: int, found: Certificate, seconds: float) -> list[str]:
    """Return one line of the table."""
    assert found.certified
    estimate = "exact" if found.estimate is None else f"{found.estimate:.4g}"
    values = [f"{found.objective:.4g}", f"{found.lower_bound:.4g}", estimate]
    return [kind, *map(str, (n, D, m)), f"{seconds:.1f}", *values]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="proof_seconds")
    parser.add_argument("--fast", action="store_true", help="the smallest of each")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = ["what", "n", "D", "m", "seconds", "objective", "proved bound", "estimate"]
    table = Table(names, args, labels=4)
    count = 1 if args.fast else None
    for size in STEPS[:count]:
        table.add(step(*size, args.seconds))
    for size in TRAININGS[:count]:
        table.add(training(*size, args.seconds))


if __name__ == "__main__":
    main()
