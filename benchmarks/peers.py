"""What the proximal optimizers are compared with and PyTorch does not have: SciPy's, and SOAP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn


class SciPy(torch.optim.Optimizer):
    """One run of ``scipy.optimize.minimize`` from the parameters as one step.

    Args:
        params: Parameters of float64, on the CPU.
        method: "BFGS" or "L-BFGS-B".
        options: Those of the method.
    """

    def __init__(self, params: Iterable[nn.Parameter], method: str, **options: Any) -> None:
        super().__init__(params, {})
        self.method, self.options = method, options

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Minimise until the method ends."""
        parameters: list[Tensor] = self.param_groups[0]["params"]
        sizes = [p.numel() for p in parameters]

        def write(x: Any) -> None:
            for p, part in zip(parameters, torch.from_numpy(x).split(sizes), strict=True):
                p.copy_(part.view_as(p))

        def function(x: Any) -> tuple[float, Any]:
            write(x)
            with torch.enable_grad():
                loss = torch.as_tensor(closure()).item()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            return loss, torch.cat([g.reshape(-1) for g in grads]).numpy().copy()

        start = torch.cat([p.reshape(-1) for p in parameters]).numpy().astype(np.float64)
        found = minimize(function, start, jac=True, method=self.method, options=self.options)
        write(found.x)
        return found.fun


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner.

    Matrices are rotated, other tensors have plain Adam. The first step only fills the
    preconditioner, as in the authors' code.

    Args:
        params: Parameters.
        lr: Step size.
        betas: Averages of the gradient and of its square.
        every: Steps between two updates of the basis.

    Source: Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        every: int = 1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "every": every})

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take one step."""
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._move(p, group)
        return loss

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state, g = self.state[p], p.grad
        assert g is not None
        b1, b2 = group["betas"]
        rotated = p.ndim == 2
        if not state:
            state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            if rotated:
                state["sides"] = [(1 - b2) * g @ g.T, (1 - b2) * g.T @ g]
                state["bases"] = [torch.linalg.eigh(A)[1].flip(1) for A in state["sides"]]
                return
        state["t"] += 1
        state["m"].lerp_(g, 1 - b1)
        m = state["m"]
        if rotated:
            L, R = state["bases"]
            g_in, m = L.T @ g @ R, L.T @ m @ R
        else:
            g_in = g
        state["v"].mul_(b2).addcmul_(g_in, g_in, value=1 - b2)
        size = group["lr"] * (1 - b2 ** state["t"]) ** 0.5 / (1 - b1 ** state["t"])
        way = m / (state["v"].sqrt() + 1e-8)
        if rotated:
            way = L @ way @ R.T
        p.sub_(size * way)
        if rotated:
            state["sides"][0].lerp_(g @ g.T, 1 - b2)
            state["sides"][1].lerp_(g.T @ g, 1 - b2)
            if state["t"] % group["every"] == 0:
                # One power iteration: the basis hardly turns between two steps.
                state["bases"] = [
                    torch.linalg.qr(A @ Q)[0]
                    for A, Q in zip(state["sides"], state["bases"], strict=True)
                ]
