"""What a solver sees: P(V) = F(V) + sum_c d_c(V, W)/(2 gamma_c) on one flat vector.

Everything that an optimizer or :func:`torch_wprox.prox` moves is one vector ``v`` of ``N`` numbers,
cut into blocks: a cloud of m particles in R^D, or a plain tensor, which is a cloud of one particle.
A solver sees only :class:`Objective`; it knows neither the closure nor the distance.
"""

from torch_wprox.objective.block import Block, Chart
from torch_wprox.objective.evaluation import Evaluation
from torch_wprox.objective.prox_objective import BudgetExhausted, LossAndGrad, Objective

__all__ = ["Block", "BudgetExhausted", "Chart", "Evaluation", "LossAndGrad", "Objective"]
