"""The JKO step on a grid: entropic plans, solved by Newton's method on the semi-dual."""

from torch_wprox.jko.optimizer import EntropicJKO
from torch_wprox.jko.report import JKOReport

__all__ = ["EntropicJKO", "JKOReport"]
