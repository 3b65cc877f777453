r"""The debiased step: the Sinkhorn divergence in place of W_eps, by alternating minimisation.

Because :math:`-\tfrac12 W_\varepsilon(p, p) = \min_d\, -\varepsilon\langle \log d, p\rangle +
\tfrac{\varepsilon}{2} \langle d, \xi d\rangle`, the step is the joint minimum over p and d of

.. math:: J(p, d) = W_\varepsilon(p, q) - \varepsilon\langle \log d, p\rangle
    + \tfrac{\varepsilon}{2}\langle d, \xi d\rangle + \tau f(p) - \tfrac12 W_\varepsilon(q, q).

For fixed d it is a plain step with d a in place of a. With the d of q (:math:`d\,(\xi d) = q`) and
tau = 0 its answer is q; so even one round never raises f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.jko.kernel import GridKernel
from torch_wprox.jko.problem import JKOProblem, Method, Solution
from torch_wprox.report import Status

_SELF_ITERATIONS = 500
FLAT = 3e-5
"""How far J may stay above its minimum, relative to its terms, if nothing else is said.

High-frequency modes of p converge slowly when epsilon > 2 dx^2 and matter for nothing.
"""


@dataclass(frozen=True)
class Debiased:
    """A debiased step.

    Attributes:
        solution: Of the last round; its objective is J.
        rounds: Rounds taken.
        iterations: Of all rounds together.
        history: J after every round.
    """

    solution: Solution
    rounds: int
    iterations: int
    history: tuple[float, ...]


def self_potential(kernel: GridKernel, q: Tensor) -> Tensor:
    r"""Return log d with :math:`d\,(\xi d) = q`, (B, *shape); -inf where q is 0.

    The averaged iteration log d <- (log d + log q - log xi d)/2 halves the error every time.

    Args:
        kernel: xi.
        q: (B, *shape), zeros allowed.
    """
    log_d = torch.log(q) / 2
    tolerance = 4 * torch.finfo(q.dtype).eps * float(q.sum())
    error = math.inf
    for _ in range(_SELF_ITERATIONS):
        log_xid = _lse(kernel, log_d)
        last, error = error, float((torch.exp(log_d + log_xid) - q).abs().sum())
        if error <= tolerance or (error >= last and error < 1e3 * tolerance):
            break
        log_d = _averaged(log_d, q, log_xid)
    return log_d


def solve_debiased(
    problem: JKOProblem,
    method: Method,
    start: Tensor | None,
    *,
    tolerance: float = FLAT,
    max_rounds: int,
) -> Debiased:
    """Solve the debiased step.

    Args:
        problem: The plain step.
        method: Solves a plain step.
        start: For the first round.
        tolerance: The rounds end when J is above its minimum by this share of its terms, as its
            last fall tells.
        max_rounds: Rounds allowed; 1 gives a step that never raises f, more its minimum.
    """
    q, epsilon = problem.q, problem.epsilon
    log_d = self_potential(problem.kernel, q)
    held = torch.where(q > 0, q * log_d, 0)
    constant = -0.5 * epsilon * float(2 * held.sum() - q.sum())  # -W_eps(q, q)/2

    def solved(log_d: Tensor, start: Tensor | None) -> tuple[Solution, Tensor]:
        """Minimise J over p; its value replaces the objective, log xi d comes along."""
        found = method(problem.debiased_by(log_d), start)
        log_xid = _lse(problem.kernel, log_d)
        self_term = 0.5 * epsilon * float(torch.exp(log_d + log_xid).sum())
        return replace(found, objective=found.objective + self_term + constant), log_xid

    now, log_xid = solved(log_d, start)
    history, iterations, rounds = [now.objective], now.iterations, 1
    before: Tensor | None = None
    momentum = 0
    while (
        rounds < max_rounds and now.status is not Status.NONFINITE and not problem.watch.is_over()
    ):
        plain = _averaged(log_d, now.plan.p, log_xid)
        # Nesterov's extrapolation, started again whenever J would rise: alternating minimisation
        # alone is sublinear in the high frequencies of d.
        beta = momentum / (momentum + 3) if before is not None else 0.0
        trial = plain if before is None or beta == 0.0 else _extrapolated(plain, before, beta)
        found, found_xid = solved(trial, now.start)
        rounds, iterations = rounds + 1, iterations + found.iterations
        fall = now.objective - found.objective
        # Accelerated, J_k - min J is C/k^2: round k leaves k/2 times what it gained.
        flat = tolerance * 2 / rounds * (abs(now.objective) + abs(problem.tau * now.loss))
        if not fall >= 0 and beta > 0.0:
            before, momentum = None, 0
            continue
        if fall >= 0:
            before, momentum = plain, momentum + 1
            now, log_d, log_xid = found, trial, found_xid
            history.append(now.objective)
        if not fall > flat:
            break
    else:
        if rounds >= max_rounds > 1 and now.status is Status.CONVERGED:
            now = replace(now, status=Status.MAX_ITER)
    return Debiased(now, rounds, iterations, tuple(history))


def _extrapolated(log_d: Tensor, before: Tensor, beta: float) -> Tensor:
    held = (log_d > -math.inf) & (before > -math.inf)
    return torch.where(held, log_d + beta * (log_d - before), -math.inf)


def _lse(kernel: GridKernel, log_d: Tensor) -> Tensor:
    # d_i d_j xi_ij <= sqrt(q_i q_j) xi_ij: the plan of q with itself reaches no further than xi.
    return kernel.lse(log_d, kernel.windows([0.0] * (log_d.ndim - 1)))


def _averaged(log_d: Tensor, p: Tensor, log_xid: Tensor) -> Tensor:
    """Return (log d + log p - log xi d)/2, -inf where p is 0: there is no barrier against it."""
    held = (p > 0) & (log_d > -math.inf)
    return torch.where(held, (log_d + torch.log(p) - log_xid) / 2, -math.inf)
