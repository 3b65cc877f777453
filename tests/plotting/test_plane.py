from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from lightning_examples import output, problems
from torch_wprox import plane, plotting


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    before = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6, unique_by=lambda x: round(x, 3)))
def test_the_inactive_cone_holds_exactly_the_neurons_that_activate_nothing(xs: list[float]) -> None:
    x = torch.tensor(xs, dtype=torch.float64)
    rays = plane.inactive_cone(x)
    assert rays is not None  # (0, -1) activates no (x_j, 1), nor does anything near it
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)[:-1]
    v = torch.stack([angles.cos(), angles.sin()], dim=1)
    worst = (v @ torch.stack([x, torch.ones_like(x)])).amax(dim=1)
    inside = (torch.linalg.solve(rays.T, v.T) >= 0).all(dim=0)
    clear = worst.abs() > 1e-6
    assert torch.equal(inside[clear], worst[clear] <= 0)


def test_data_all_around_leave_no_inactive_cone() -> None:
    around = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    assert plane.inactive_cone(around) is None
    ax = plt.figure().add_subplot()
    assert not plane.plot_inactive(ax, around).patches


def test_shading_and_rays_leave_the_limits_alone() -> None:
    ax = plt.figure().add_subplot()
    ax.set(xlim=(-1, 2), ylim=(-3, 1))
    plane.plot_inactive(ax, torch.tensor([-1.0, 1.0]))
    plane.plot_rays(ax, torch.tensor([[1.0, 1.0], [3.0, 0.0]]), label="rays")
    assert ax.get_xlim() == (-1, 2)
    assert ax.get_ylim() == (-3, 1)
    assert ax.get_legend_handles_labels()[1] == ["activates no data", "rays"]
    assert min(line.get_xdata()[1] for line in ax.get_lines()) > 2  # beyond the edge


def test_arrows_end_where_they_point_in_data_coordinates() -> None:
    ax = plt.figure().add_subplot()
    start, arrows = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    plane.plot_arrows(ax, start, arrows, plotting.PALETTE[0], label="arrows")
    [quiver] = ax.collections
    assert np.array_equal(quiver.get_offsets(), start.numpy())
    assert np.array_equal(np.stack([quiver.U, quiver.V], 1), arrows.numpy())
    assert (quiver.scale, quiver.scale_units, quiver.angles) == (1, "xy", "xy")


def test_ways_stand_out_once_in_the_legend() -> None:
    ax = plt.figure().add_subplot()
    plane.plot_ways(ax, torch.randn(4, 3, 2), label="moved")
    assert len(ax.get_lines()) == 3
    assert ax.get_legend_handles_labels()[1] == ["moved"]


@pytest.mark.slow
def test_the_animation_passes_through_every_iterate(tmp_path: Path) -> None:
    way = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    with plotting.style():
        film = plane.animate_trajectories({"A": way, "B": way}, signs, between=2)
        heads = film._func(3)[1::2]  # type: ignore[attr-defined]
        middle = ((way[1] + way[2]) / 2).numpy()
        for head, members in zip(heads, [slice(0, 2), slice(2, 4)] * 2, strict=True):
            assert np.allclose(np.stack(head.get_data(), 1), middle[members])
        output.save_gif(film, tmp_path / "film.gif", size=(4, 2), fps=10)
    with Image.open(tmp_path / "film.gif") as image:
        assert image.n_frames == 5
        assert image.info["duration"] == 100


def test_the_animation_refuses_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="between >= 1, got 0 and 4"):
        plane.animate_trajectories({}, torch.ones(2))


def test_extremal_vectors_are_those_of_a_closed_form() -> None:
    # One point (x, 1) with y > 0: positive neurons align with (x, 1), negative ones with -(x, 1)
    # nowhere active: no maximum where G is not 0.
    x, y = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)
    [angle] = problems.extremal(x, y, 1.0)
    assert abs(angle.item() - math.pi / 4) < 1e-3  # the grid of angles is 1.7e-4 fine
    assert not len(problems.extremal(x, y, -1.0))


def test_the_least_loss_falls_with_every_kink_to_an_interpolant() -> None:
    x, y = problems.sinus()
    losses = [problems.least_loss(x, y, kinks) for kinks in ((), (0.0,), (0.0, 0.25))]
    assert losses == sorted(losses, reverse=True)
    # Negative neurons alone reach the concave least squares fit, kinks at +-.25.
    assert abs(problems.least_loss(x, y, (-0.25, 0.25)) - 0.4325491098) < 1e-9
    assert problems.least_loss(x, y, (-0.25, 0.0, 0.25)) < 1e-28  # five points, five parameters
