"""The colours of one photograph carried to another by convex maps, beside exact transport.

    python -m lightning_examples.colours

Pixels are points in (red, green, blue). Five hundred of them from scikit-learn's photograph of a
temple flow to five hundred of its photograph of a flower, and the other way round: the energy is
half the exact W2^2 to the target, every step is a convex map that goes half of what is left, and
their composition recolours all pixels, also those that were never seen. Beside it: affine maps, and
the exact plan of the samples, extended to the nearest sample. All are judged on other pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ot
import torch
from matplotlib import pyplot as plt
from scipy.spatial import cKDTree
from sklearn.datasets import load_sample_image
from torch import Tensor

from lightning_examples import experiment, output
from lightning_examples.flowing import trained
from torch_wprox import MapFlow, plotting, wasserstein_sq
from torch_wprox.maps import CloudFunction

Map = Callable[[Tensor], Tensor]


# %% The data: pixels of two photographs
def photograph(name: str, thinned: int = 2) -> Tensor:
    """Colours in [0, 1], (height, width, 3)."""
    return torch.tensor(load_sample_image(name)[::thinned, ::thinned] / 255.0)


@dataclass(frozen=True)
class Clouds:
    """Pixels to learn from and other pixels to judge by, (m, 3) each."""

    start: Tensor
    end: Tensor
    other_start: Tensor
    other_end: Tensor

    @staticmethod
    def of(source: Tensor, target: Tensor, m: int, seed: int) -> Clouds:
        random = torch.Generator().manual_seed(seed)
        found = []
        for picture in (source, target):
            pixels = picture.reshape(-1, 3)
            found.append(pixels[torch.randperm(len(pixels), generator=random)[: 2 * m]])
        return Clouds(found[0][:m], found[1][:m], found[0][m:], found[1][m:])


# %% Three ways to carry colours
def learned(clouds: Clouds, depth: int, args: Any) -> MapFlow:
    to_target = CloudFunction(lambda y: wasserstein_sq(y, clouds.end) / 2)
    how: dict[str, Any] = {"depth": depth, "max_eval": args.max_eval}
    flow = MapFlow(clouds.start, to_target, args.gamma, **how)
    trained(flow, args, "W2^2/2 to the target", every=args.steps)
    return flow


def partners(x: Tensor, y: Tensor) -> Tensor:
    """Where the exact plan takes x (m, 3), as points of y (m, 3)."""
    mass = torch.full((len(x),), 1 / len(x), dtype=x.dtype).numpy()
    plan = ot.emd(mass, mass, torch.cdist(x, y).square().numpy(), numItermax=10_000_000)
    return y[torch.from_numpy(plan.argmax(1))]


def nearest_sample(clouds: Clouds) -> Map:
    carried, tree = partners(clouds.start, clouds.end), cKDTree(clouds.start.numpy())
    return lambda x: carried[torch.from_numpy(tree.query(x.numpy())[1])]


# %% How well: on pixels that were not seen
def distance(x: Tensor, y: Tensor) -> float:
    return float(wasserstein_sq(x, y).sqrt())


def judged(carry: Map, clouds: Clouds) -> dict[str, float]:
    moved = carry(clouds.other_start)
    cost = (moved - clouds.other_start).square().sum(1).mean()
    exact = partners(clouds.other_start, clouds.other_end)
    left = (moved - exact).square().sum(1).mean()
    whole = (exact - exact.mean(0)).square().sum(1).mean()
    return {
        "W2 to the target": distance(moved, clouds.other_end),
        "variance explained": float(1 - left / whole),
        "cost over W2^2 of the move": float(cost / wasserstein_sq(clouds.other_start, moved)),
    }


# %% The run
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "colours", m=500, steps=6, gamma=1.0, max_eval=25)
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.steps, args.max_eval = 100, 3, 8
    photographs = {name: photograph(f"{name}.jpg") for name in ("china", "flower")}
    rows, pictures = [], {}
    for names in (("china", "flower"), ("flower", "china")):
        source, target = (photographs[name] for name in names)
        clouds = Clouds.of(source, target, args.m, seed=0)
        flow, affine = (learned(clouds, depth, args) for depth in (2, 0))
        maps: dict[str, Map] = {
            "affine maps": affine.transport,
            "convex maps": flow.transport,
            "exact plan, nearest sample": nearest_sample(clouds),
        }
        direction = " to ".join(names)
        for name, carry in maps.items():
            rows.append({"direction": direction, "method": name, **judged(carry, clouds)})
        floor = {"W2 to the target": distance(clouds.end, clouds.other_end)}
        floor |= {"variance explained": 1.0, "cost over W2^2 of the move": 1.0}
        rows.append({"direction": direction, "method": "other pixels of the target", **floor})
        start = {"W2 to the target": distance(clouds.other_start, clouds.other_end)}
        unmoved = judged(lambda x: x, clouds)["variance explained"]
        start |= {"variance explained": unmoved, "cost over W2^2 of the move": 1.0}
        rows.append({"direction": direction, "method": "not moved", **start})
        pixels = source.reshape(-1, 3)
        half = flow.transport(pixels, 1)
        shown = {"source": pixels, "one step, half way": half}
        shown |= {name: carry(pixels) for name, carry in maps.items()}
        pictures[direction] = {name: x.view(source.shape) for name, x in shown.items()}
    output.tabulate(args.out / "colours.csv", rows)
    plot(pictures, args)
    return rows


def plot(pictures: dict[str, dict[str, Tensor]], args: Any) -> None:
    names = list(next(iter(pictures.values())))
    with plotting.style():
        _, axes = plt.subplots(len(pictures), len(names))
        for line, row in zip(axes, pictures.values(), strict=True):
            for ax, (name, picture) in zip(line, row.items(), strict=True):
                ax.imshow(picture.clamp(0, 1).numpy(), interpolation="antialiased")
                ax.set_axis_off()
                ax.set_title(name, fontsize=8)
        output.save(axes[0, 0], args.out / "colours.png", size=(11, 3.6))


if __name__ == "__main__":
    main()
