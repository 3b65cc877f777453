r"""Entropic plans of the form diag(d a) xi diag(b) whose second marginal is the anchor q."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torch_wprox.jko.kernel import GridKernel, Window


@dataclass(frozen=True)
class Plan:
    r"""The plan :math:`\pi_{ij} = d_i a_i \xi_{ij} b_j`; all fields are (B, *shape).

    Attributes:
        kernel: xi.
        windows: The cut of xi with which it was made.
        log_a: What the loss adds to the potential of p: -phi/epsilon.
        log_left: log(d a), the whole factor on the side of p.
        log_b: The factor on the side of q; -inf where q is 0.
        p: First marginal.
        q: Second marginal.
    """

    kernel: GridKernel
    windows: tuple[Window, ...]
    log_a: Tensor
    log_left: Tensor
    log_b: Tensor
    p: Tensor
    q: Tensor

    def mean_over_p(self, v: Tensor) -> Tensor:
        r"""Return :math:`E_{\pi(\cdot|j)}[v]`, (C, B, *shape), for v (C, B or 1, *shape) on p."""
        return self.kernel.expectation(self.log_left, v, self.windows)[1]

    def mean_over_q(self, v: Tensor) -> Tensor:
        r"""Return :math:`E_{\pi(i|\cdot)}[v]`, (C, B, *shape), for v on the side of q."""
        return self.kernel.expectation(self.log_b, v, self.windows)[1]

    def covariance(self, v: Tensor) -> Tensor:
        r"""Return :math:`C v = p\,v - \pi\,\mathrm{diag}(1/q)\,\pi^T v`, all (B, *shape).

        The derivative of p in log a: symmetric, positive semidefinite, 0 on constants.
        """
        return self.p * (v - self.mean_over_q(self.mean_over_p(v.unsqueeze(0)))[0])

    @cached_property
    def entropy(self) -> float:
        r""":math:`\langle \log a, p\rangle + \langle \log b, q\rangle - \sum q`.

        Times epsilon: W_eps(p, q) when d = 1, and :math:`W_\varepsilon - \varepsilon \langle
        \log d, p\rangle` for other d.
        """
        held = torch.where(self.q > 0, self.q * self.log_b, 0)
        return float((self.p * self.log_a).sum() + held.sum() - self.q.sum())

    def displacement(self, axes: Sequence[Tensor]) -> Tensor:
        r"""Return :math:`E_{\pi(\cdot|j)}[x] - y_j`, (D, B, *shape): where the mass of cell j goes.

        Args:
            axes: Positions along every axis.
        """
        grids = torch.meshgrid(*(x.to(self.p) for x in axes), indexing="ij")
        x = torch.stack(list(grids)).unsqueeze(1)
        return torch.where(self.q > 0, self.mean_over_p(x) - x, 0)


def plan_of(kernel: GridKernel, q: Tensor, log_a: Tensor, log_d: Tensor | None = None) -> Plan:
    r"""Return the plan with second marginal q.

    .. math:: \log b = \log q - \log \xi^T (d a), \qquad p = d\,a\,(\xi b)

    so the mass of p is that of q in every block, whatever log a is.

    Args:
        kernel: xi.
        q: (B, *shape), zeros allowed.
        log_a: (B, *shape).
        log_d: (B, *shape) or None for d = 1.
    """
    # Only differences inside a block matter; small numbers keep more digits in their exponentials.
    log_a = log_a - log_a.flatten(1).amax(1).view(-1, *[1] * (log_a.ndim - 1))
    windows = kernel.windows(kernel.slopes(log_a))
    log_left = log_a if log_d is None else log_a + log_d
    backward = kernel.lse(log_left, windows)
    log_b = torch.where(q > 0, torch.log(q) - backward, -math.inf)
    p = torch.exp(log_left + kernel.lse(log_b, windows))
    return Plan(kernel, windows, log_a, log_left, log_b, p, q)


def transport_cost(plan: Plan) -> float:
    r"""Return W_eps(p, q)/epsilon = <log(d a), p> + <log b, q> - sum q."""
    held = torch.where(plan.p > 0, plan.p * (plan.log_left - plan.log_a), 0)
    return plan.entropy + float(held.sum())
