"""Four processes started by torchrun take the steps of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cases import ddp_cases

pytestmark = pytest.mark.nightly
WORLD = 4


def test_four_processes_of_torchrun_are_the_full_batch_in_one(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(WORLD), str(tests / "drills" / "torchrun.py")]
    subprocess.run([*command, str(tmp_path)], env=environment, check=True, timeout=300)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
    assert len(ranks[0]) == len(ddp_cases.COMBINATIONS)
    for (distance, solver), found in ranks[0].items():
        for other in ranks[1:]:
            assert torch.equal(found["end"], other[distance, solver]["end"])
        alone = ddp_cases.combination(0, 1, distance, solver)
        for shared, single in zip(found["rows"], alone["rows"], strict=True):
            assert shared["evaluations"] == single["evaluations"]
            assert shared["status"] == single["status"] != "max_eval"
        assert torch.allclose(found["end"], alone["end"], rtol=0, atol=1e-9)
