"""PyTorch optimizers that take proximal steps in the space of measures."""

from torch_wprox.report import Status, StepReport, TransportCounts

__all__ = ["Status", "StepReport", "TransportCounts"]
__version__ = "0.1.0.dev0"
