"""The nodes of a branch and bound that may still hold better directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.responses.moment_bound import Multipliers


@dataclass(frozen=True)
class OpenNodes:
    """Nodes that may still hold better directions.

    Attributes:
        group: The group of particles that it is for (B,).
        sign: sigma (B, n).
        multipliers: Of their bounds.
        bounds: For every particle of the group, -inf for others, (B, m), in units of the scale.
        branch: The sample to branch on (B,), -1 where none is left: then the node is only bounded
            anew for another particle, and -2 where that no longer helps.
    """

    group: Tensor
    sign: Tensor
    multipliers: Multipliers
    bounds: Tensor
    branch: Tensor

    def rows(self, index: Tensor) -> OpenNodes:
        """Return some of the nodes."""
        return OpenNodes(
            self.group[index],
            self.sign[index],
            self.multipliers.rows(index),
            self.bounds[index],
            self.branch[index],
        )

    @staticmethod
    def joined(parts: list[OpenNodes]) -> OpenNodes:
        """Return the nodes of all parts."""
        x = [p.multipliers for p in parts]
        return OpenNodes(
            torch.cat([p.group for p in parts]),
            torch.cat([p.sign for p in parts]),
            Multipliers(
                torch.cat([q.first for q in x]),
                torch.cat([q.second for q in x]),
                torch.cat([q.level for q in x]),
            ),
            torch.cat([p.bounds for p in parts]),
            torch.cat([p.branch for p in parts]),
        )
