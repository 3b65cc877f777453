"""Why a solver ended."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Why the inner solver of a step ended.

    Example:
        >>> Status.CONVERGED == "converged"
        True
    """

    CONVERGED = "converged"
    """The residual fell below ``tolerance_grad`` times its first value."""
    INEXACT = "inexact"
    """The relative inexact-prox rule ``|residual| <= rho |V - W| / (m gamma)`` holds."""
    CERTIFIED = "certified"
    """The gap to the lower bound fell below ``tolerance_gap``."""
    STALLED = "stalled"
    """No lower value can be found at this floating-point precision."""
    MAX_EVAL = "max_eval"
    """All closure evaluations allowed for the step are used."""
    MAX_ITER = "max_iter"
    """All iterations allowed for the step are used."""
    STOPPED = "stopped"
    """The callback or the time budget ``seconds`` ended the step: its best point was kept."""
    NO_MOVE = "no_move"
    """Nothing may move: ``gamma`` is 0 or ``max_eval`` is 1."""
    NONFINITE = "nonfinite"
    """Loss or gradient at the anchor is NaN or infinite: the parameters stayed where they were."""
