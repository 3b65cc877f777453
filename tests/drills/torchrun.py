"""What torchrun starts in every process: all distances and solvers, stopping rules on."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cases import ddp_cases

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    found = {
        (distance, solver): ddp_cases.combination(rank, world, distance, solver)
        for distance, solver in ddp_cases.COMBINATIONS
    }
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
