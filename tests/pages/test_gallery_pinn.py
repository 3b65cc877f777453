"""The page of the equations says what its table says, and their parts are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_gallery_flow import page, table
from torch import Tensor

from lightning_examples import equations
from lightning_examples.pinn import optimizers
from lightning_examples.ssbroyden import SSBroyden, updated
from torch_wprox.solvers.bfgs import self_scaled

F64 = torch.float64


def test_the_page_says_what_the_table_says() -> None:
    rows, said = table("pinn"), page("pinn")
    assert {r["equation"] for r in rows} == set(equations.EQUATIONS)
    for name in equations.EQUATIONS:
        of = [r for r in rows if r["equation"] == name]
        assert [r["optimizer"] for r in of] == list(optimizers(1.0, 1.0))
        for r in of:
            loss, error = (f"{float(r[column]):.1e}" for column in ("loss", "error"))
            assert f"| {name} | {r['optimizer']} | {loss} | {error} |" in said


def test_derivatives_are_those_of_autograd() -> None:
    net = equations.network(0)
    x = torch.rand(7, 2, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    u, first, second = equations.derivatives(net, x)
    assert torch.allclose(u, net(x)[:, 0])
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    assert torch.allclose(first.T, slope, rtol=1e-12)
    for axis in range(2):
        (row,) = torch.autograd.grad(slope[:, axis].sum(), x, retain_graph=True)
        assert torch.allclose(second[axis], row[:, axis], rtol=1e-10, atol=1e-12)


def residual_of_the_solution(equation: equations.Equation, x: Tensor) -> Tensor:
    """The residual of the exact solution (n,), by autograd."""
    x = x.clone().requires_grad_()
    u = equation.exact(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    rows = [torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    second = torch.stack([row[:, i] for i, row in enumerate(rows)])
    return equation.residual(u, slope.T, second)


@pytest.mark.parametrize("name", equations.EQUATIONS)
def test_the_exact_solution_solves_the_equation_and_has_the_values_given(name: str) -> None:
    equation = equations.EQUATIONS[name]()
    x = equation.inside
    if name == "Burgers":  # its shock is narrower than the nodes of the quadrature
        x = x[(x[:, 1] < 0.25) & (x[:, 1] > 0.01)]
        assert len(x) > 50
        assert residual_of_the_solution(equation, x).abs().max() < 1e-6
    else:
        assert residual_of_the_solution(equation, x).abs().max() < 1e-12
    apart = equation.exact(equation.edge) - equation.values
    assert apart.abs().max() < 1e-6


def test_the_shock_of_burgers_is_as_steep_as_the_literature_says() -> None:
    # Basdevant et al. (1986): the slope at x = 0 is largest at t = 0.5105, where it is 152.
    h, t = 1e-6, 1.6037 / math.pi
    u = equations.cole_hopf(torch.tensor([[h, t], [-h, t]], dtype=F64))
    assert abs((u[0] - u[1]) / (2 * h)).item() == pytest.approx(152.00516, rel=1e-4)


def test_the_published_update_is_that_of_the_library() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 6))
    A = A @ A.T + np.eye(6)
    H = np.diag(np.arange(1.0, 7.0))
    ours = torch.from_numpy(H.copy())
    for s in rng.standard_normal((5, 6)):
        sBs = float(s @ np.linalg.solve(H, s))
        H = updated(H, s, A @ s, sBs)
        self_scaled(ours, torch.from_numpy(s), torch.from_numpy(A @ s), sBs)
        np.testing.assert_allclose(ours.numpy(), H, rtol=1e-9, atol=1e-9 * np.abs(H).max())


def test_ssbroyden_minimises_rosenbrocks_function_without_evaluating_twice() -> None:
    x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=F64))
    opt, seen = SSBroyden([x], max_iter=100), []

    def closure() -> Tensor:
        opt.zero_grad()
        loss = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        loss.backward()
        seen.append(tuple(x.detach().tolist()))
        return loss

    opt.step(closure)
    assert torch.allclose(x.detach(), torch.ones(2, dtype=F64), atol=1e-8)
    assert len(set(seen)) > 0.9 * len(seen)
    with pytest.raises(RuntimeError, match="needs a closure"):
        opt.step()
