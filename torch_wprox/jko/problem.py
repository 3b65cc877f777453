"""The step as a problem: the anchor, its kernel, and the linear map from measures to outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from torch_wprox.closure.watch import Watch
from torch_wprox.jko.kernel import GridKernel
from torch_wprox.jko.plan import Plan, plan_of
from torch_wprox.report import Status

# Features are carried through the kernel in portions of about this many numbers.
_PORTION = 4_000_000


@dataclass(frozen=True)
class JKOProblem:
    r"""Minimise a cost of transport and tau f over the measures p of the grid.

    .. math:: W_\varepsilon(p, q) - \varepsilon \langle \log d, p\rangle + \tau f(p)

    Attributes:
        kernel: xi of the grid, for this epsilon.
        q: The anchor, (B, *shape).
        epsilon: Entropic regularisation.
        tau: 2 gamma.
        log_d: (B, *shape); None for d = 1, the plain step.
        watch: Told of every iteration; ends the step early.
    """

    kernel: GridKernel
    q: Tensor
    epsilon: float
    tau: float
    log_d: Tensor | None = None
    watch: Watch = field(default_factory=Watch)

    def plan(self, phi: Tensor) -> Plan:
        """Return the plan with a = exp(-phi/epsilon), phi (B, *shape)."""
        return plan_of(self.kernel, self.q, phi / -self.epsilon, self.log_d)

    def cost(self, plan: Plan) -> float:
        r"""Return :math:`W_\varepsilon(p, q) - \varepsilon \langle \log d, p\rangle`."""
        return self.epsilon * plan.entropy

    def tell(self, iteration: int, value: float, residual: float) -> bool:
        """Tell the watch of one iteration; return whether the step has to end.

        The methods lower ``value`` from one iteration to the next, so the last one is the best.
        """
        return self.watch.note(iteration, value, value, residual)

    def debiased_by(self, log_d: Tensor) -> JKOProblem:
        """Return the problem with this d."""
        return replace(self, log_d=log_d)


@dataclass(frozen=True)
class Solution:
    """What a method found.

    Attributes:
        plan: The plan; its first marginal is the answer.
        start: Unknowns at the end (lambda or phi), from which to start the next solve.
        loss: f(p).
        objective: cost + tau f.
        residual: 2-norm of what must vanish.
        iterations: Iterations of the method.
        status: Why it ended.
    """

    plan: Plan
    start: Tensor
    loss: float
    objective: float
    residual: float
    iterations: int
    status: Status


Method = Callable[[JKOProblem, "Tensor | None"], Solution]
"""(problem, start or None) -> solution."""


@dataclass(frozen=True)
class OutputMap:
    r"""The linear map from measures to outputs, :math:`u_c = \sum_{b \in c} s_b \Phi p_b`.

    Attributes:
        features: Phi, (samples, *shape).
        signs: s_b of every block.
        outputs: c of every block.
        count: Number of outputs k.
    """

    features: Tensor
    signs: Sequence[float]
    outputs: Sequence[int]
    count: int

    @property
    def samples(self) -> int:
        """Rows of the output."""
        return self.features.shape[0]

    def of(self, p: Tensor) -> Tensor:
        """Return u (n,), n = samples x k, for p (B, *shape)."""
        signed = p.new_zeros(self.count, p[0].numel())
        signed.index_add_(0, self._index(p), p.flatten(1) * p.new_tensor(self.signs).unsqueeze(1))
        return (self.features.flatten(1) @ signed.t()).flatten()

    def potential(self, lam: Tensor) -> Tensor:
        """Return phi = Phi^T lambda, (B, *shape), for lambda (n,)."""
        fields = lam.view(self.samples, self.count).t() @ self.features.flatten(1)
        signs = lam.new_tensor(self.signs).unsqueeze(1)
        return (signs * fields[self._index(lam)]).view(-1, *self.features.shape[1:])

    def covariance(self, plan: Plan) -> Tensor:
        r"""Return :math:`\Phi\,\mathrm{diag}(p)\,\Phi^T - B\,\mathrm{diag}(q)\,B^T`, (n, n).

        :math:`B_j = E_{\pi(\cdot|j)}[\Phi]`. Blocks do not mix and a block feeds one output, so the
        matrix is made of (samples, samples) blocks on the diagonal, one per output.
        """
        n, blocks = self.samples, len(self.signs)
        B = plan.q.new_empty(n, blocks, plan.q[0].numel())
        portion = max(1, _PORTION // plan.q.numel())
        for i in range(0, n, portion):
            part = self.features[i : i + portion].unsqueeze(1)
            B[i : i + portion] = plan.mean_over_p(part).flatten(2)
        B *= plan.q.flatten(1).sqrt()
        return self._weighted(plan.p, B)

    def gram(self, p: Tensor) -> Tensor:
        r"""Return :math:`\Phi\,\mathrm{diag}(p)\,\Phi^T`, (n, n)."""
        return self._weighted(p, None)

    def _weighted(self, p: Tensor, B: Tensor | None) -> Tensor:
        n, k = self.samples, self.count
        features, p = self.features.flatten(1), p.flatten(1)
        C = p.new_zeros(n, k, n, k)
        for c in range(k):
            mine = [b for b, output in enumerate(self.outputs) if output == c]
            C[:, c, :, c] = (features * p[mine].sum(0)) @ features.t()
            for b in mine if B is not None else ():
                C[:, c, :, c] -= B[:, b] @ B[:, b].t()  # type: ignore[index]
        return C.view(n * k, n * k)

    def _index(self, like: Tensor) -> Tensor:
        return torch.tensor(self.outputs, device=like.device)
