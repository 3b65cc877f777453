"""Figures: pure functions ``(..., ax=None) -> Axes``.

Every function draws into ``ax``, or into a new figure, and returns the axes it drew into.
matplotlib is imported when one of them is called and not before. The colours are those of Okabe and
Ito, which can be told apart with any colour vision; line styles and markers say the same again.
``PALETTE`` holds them; ``NEGATIVE`` and ``POSITIVE`` are those of neurons by their output weight.

Example:
    >>> import matplotlib, torch; matplotlib.use("agg")
    >>> ax = plot_trajectories(torch.randn(11, 6, 2), signs=torch.tensor([1.0, -1.0] * 3))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('weight $w$', 'bias $b$')
"""

from torch_wprox.plotting.curves import plot_bands, plot_certificates, plot_curves, plot_descent
from torch_wprox.plotting.look import NEGATIVE, PALETTE, POSITIVE, legend_above, style
from torch_wprox.plotting.neurons import plot_function, plot_trajectories

__all__ = [
    "NEGATIVE",
    "PALETTE",
    "POSITIVE",
    "legend_above",
    "plot_bands",
    "plot_certificates",
    "plot_curves",
    "plot_descent",
    "plot_function",
    "plot_trajectories",
    "style",
]
