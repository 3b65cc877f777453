"""Two points on a line, one of which has no gradient (section 1 of the note).

    python -m lightning_examples.two_points

f(x, y) = (x - 4)^2 / 2 from (x, y) = (0, 1), step size g = 2 gamma. The Frobenius prox never moves
y. The Wasserstein prox does once x passes y: the plan then sends the anchor 1 to x and 0 to y.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import Run
from torch_wprox import FrobeniusProx, WassersteinProx, plotting

STEP_SIZES = (0.05, 0.2, 0.5, 1.0, 10.0)
START = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
EXACT: dict[str, Any] = {"solver": "gd", "max_eval": 400, "tolerance_grad": 1e-13}
MAKE: dict[str, Any] = {
    "Wasserstein": lambda p, g: WassersteinProx(p, g / 2, classes=None, **EXACT),
    "Frobenius": lambda p, g: FrobeniusProx(p, g / 2, **EXACT),
}


def f(model: Any, *_: Tensor) -> Any:
    return (model.points[0, 0] - 4).square() / 2


# %% What the theory says
def predicted(name: str, g: float, steps: int) -> list[list[float]]:
    """Iterates of a local inner descent: the swap happens once, in the step in which x passes y."""
    way = [[0.0, 1.0]]
    for _ in range(steps):
        x, y = way[-1]
        if name == "Wasserstein" and x <= y < (x + 4 * g) / (1 + g):
            x, y = y, x
        way.append([(x + 4 * g) / (1 + g), y])
    return way


# %% The figure: the iterates, and the first step seen from above, below and above g = 1/3
def landscape(ax: Any, g: float) -> None:
    x, y = torch.linspace(-0.5, 4, 200), torch.linspace(-0.5, 2.2, 200)[:, None]
    plans = torch.minimum(x**2 + (y - 1) ** 2, (x - 1) ** 2 + y**2)
    levels = ax.contourf(x, y[:, 0], (x - 4) ** 2 / 2 + plans / (2 * g), 24)
    ax.figure.colorbar(levels, ax=ax, label=r"$f + \sum_i|V_i - W_{\sigma(i)}|^2/(2g)$, first step")
    ax.plot([-0.5, 2.2], [-0.5, 2.2], "w--", lw=1.2)
    ax.text(2.0, 1.98, "identity    swapped", color="white", ha="center")
    ax.plot(0, 1, "wo", ms=9, mec="black", label="anchor $(x_0, y_0)$")
    ax.plot(*predicted("Wasserstein", g, 1)[1], "ws", ms=11, mec="black", label="local descent")
    ax.plot((1 + 4 * g) / (1 + g), 0, "w*", ms=9, mec="black", label="global minimiser")
    ax.set(xlabel="$x$", ylabel="$y$", title=f"$g = {g:g}$")


def figure(runs: dict[tuple[str, float], Run]) -> Any:
    left, middle, right = plt.subplots(1, 3)[1]
    for (name, size), run in runs.items():
        x, y = torch.stack(run.positions).squeeze(2).T
        line, label = ("o-", f"$g = {size:g}$") if name == "Wasserstein" else ("x:", None)
        left.plot(x, y, line, ms=4, color=plotting.PALETTE[STEP_SIZES.index(size)], label=label)
    left.set(xlabel="$x_t$ (solid: Wasserstein, dotted: Frobenius)", ylabel="$y_t$")
    plotting.legend_above(left, columns=3)
    for ax, g in ((middle, 0.2), (right, 1.0)):
        landscape(ax, g)
    right.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.06), ncols=3, columnspacing=1)
    return left


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, float], Run]:
    args = experiment.parser(__doc__, "two_points").parse_args(argv)
    steps = 5 if args.fast else 40
    runs = {
        (name, g): experiment.train(
            problems.Points(START), partial(make, g=g), (START, START), steps, loss=f
        )
        for name, make in MAKE.items()
        for g in STEP_SIZES
    }
    rows = []
    for (name, g), run in runs.items():
        for t, (x0, y0) in enumerate(predicted(name, g, steps)):
            x, y = run.positions[t].flatten().tolist()
            error = max(abs(x - x0), abs(y - y0))
            rows += [{"descent": name, "g": g, "step": t, "x": x, "y": y, "error": error}]
    output.print_table([row for row in rows if row["step"] in (1, 2, 5, steps)])
    output.write_csv(args.out / "two_points.csv", rows)
    with plotting.style():
        output.save(figure(runs), args.out / "two_points.png", size=(15, 4.4))
    return runs


if __name__ == "__main__":
    main()
