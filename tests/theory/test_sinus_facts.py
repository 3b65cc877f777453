"""Facts about the note's sinus data that other tests and the docs lean on, by convex programs.

With a bias column every neuron is a vector u in R^2, and the five data lines cut the plane into ten
sectors of constant activation. Training both layers is then the convex program of Pilanci & Ergen
(2020): one vector per sector and sign, confined to its sector.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import MeanFieldLayer, WassersteinProx

X, Y = (t.numpy() for t in sinus_data())
X1 = np.hstack([X, np.ones_like(X)])


def activation_patterns() -> np.ndarray:
    """(p, n) patterns of all sectors, from the directions between neighbouring data lines."""
    normals = np.arctan2(X1[:, 1], X1[:, 0])
    lines = np.sort(np.concatenate([normals + np.pi / 2, normals - np.pi / 2]) % (2 * np.pi))
    middles = (lines + np.append(lines[1:], lines[0] + 2 * np.pi)) / 2
    directions = np.stack([np.cos(middles), np.sin(middles)], 1)
    return np.unique(directions @ X1.T > 0, axis=0)


def convex_program(beta: float | None) -> float:
    """min mean squared error + beta * path norm; None: min path norm of an interpolant."""
    output, norm, constraints = 0, 0, []
    for pattern in activation_patterns():
        for sign in (1.0, -1.0):
            v = cp.Variable(2)
            constraints.append(cp.multiply(2.0 * pattern - 1.0, X1 @ v) >= 0)
            output = output + sign * cp.multiply(pattern.astype(float), X1 @ v)
            norm = norm + cp.norm(v)
    if beta is None:
        problem = cp.Problem(cp.Minimize(norm), [*constraints, output == Y[:, 0]])
    else:
        error = cp.sum_squares(output - Y[:, 0]) / len(Y)
        problem = cp.Problem(cp.Minimize(error + beta * norm), constraints)
    return float(problem.solve(solver=cp.CLARABEL))


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.7369255592), (-1.0, 0.4325491098)])
def test_one_sign_alone_stops_at_a_plateau(sign: float, expected: float) -> None:
    # A non-negative sum of relu(w x + b) is a non-negative convex function: on the data a
    # non-negative combination of 1 and the hinges at the data points.
    hinges = np.hstack([np.ones_like(X), np.maximum(X - X.T, 0), np.maximum(X.T - X, 0)])
    _, residual = nnls(sign * hinges, Y[:, 0])
    assert residual**2 / len(Y) == pytest.approx(expected, abs=1e-9)


def test_only_positive_neurons_cannot_beat_zero_output() -> None:
    assert np.mean(Y**2) == pytest.approx(0.7369255592, abs=1e-10)


def test_least_path_norm_of_an_interpolant() -> None:
    assert convex_program(None) == pytest.approx(38.2072974, rel=1e-6)


@pytest.mark.parametrize(
    ("beta", "expected"), [(1e-3, 0.0374599490), (1e-2, 0.3073381297), (0.1, 0.5380230092)]
)
def test_optima_with_path_norm_penalty(beta: float, expected: float) -> None:
    assert convex_program(beta) == pytest.approx(expected, rel=1e-6)


def test_five_neurons_of_mixed_signs_interpolate_exactly() -> None:
    # One neuron for the first slope, three for the changes of slope, one for the constant.
    x, y = sinus_data()
    slopes = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
    # y = y_0 + s_0 relu(x - x_0) + sum_j (s_j - s_{j-1}) relu(x - x_j) at the data
    kinks = torch.cat([slopes[:1], slopes[1:] - slopes[:-1]])
    w = torch.stack([torch.ones(4, dtype=x.dtype), -x[:4, 0]], 1) * kinks.abs()
    constant = torch.tensor([[0.0, y[0].abs().item()]], dtype=x.dtype)
    layer = MeanFieldLayer(1, 5, parameterization="signed", reduction="sum", dtype=x.dtype)
    with torch.no_grad():
        layer.particles.copy_(torch.cat([w, constant]))
        layer.alpha.copy_(torch.cat([kinks[:, 0].sign(), y[0].sign()]))
    assert (layer(x) - y).square().mean().item() < 1e-28


@pytest.mark.parametrize("seed", range(3))
def test_no_descent_passes_below_the_plateau_of_its_only_sign(seed: int) -> None:
    x, y = sinus_data()
    layer = sinus_layer(m=10, seed=seed, scale=0.1)
    with torch.no_grad():
        layer.alpha.fill_(-1.0)
    opt = WassersteinProx(layer.parameters(), gamma=10.0, max_eval=300)
    for _ in range(5):
        opt.step(closure_of(layer, opt, x, y))
    assert opt.report.loss_after >= 0.4325491098 - 1e-9
