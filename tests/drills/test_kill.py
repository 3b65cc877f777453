"""Killed in the middle of a step, a run resumes from its last checkpoint to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed
import pytest
import torch

pytestmark = pytest.mark.nightly
STEPS = 6


def started(folder: Path, solver: str, *hang: int) -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, killed.__file__, str(folder), solver, str(STEPS), *map(str, hang)]
    return subprocess.Popen(command, env=environment)


@pytest.mark.parametrize("evaluation", [1, 2, 6])
@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
def test_a_run_killed_in_the_middle_of_a_step_resumes_to_the_same_bits(
    solver: str, evaluation: int, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = killed.train(whole, solver, STEPS)

    broken = tmp_path / "broken"
    broken.mkdir()
    process = started(broken, solver, 3, evaluation)
    try:
        deadline = time.monotonic() + 120
        while not (broken / "hanging").exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert torch.load(broken / "last.pt", weights_only=True)["done"] == 3

    assert started(broken, solver).wait(timeout=120) == 0
    assert torch.equal(torch.load(broken / "end.pt", weights_only=True), expected)
