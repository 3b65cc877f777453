"""The watch of a step: what it tells, and when it ends a step."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_wprox import Progress
from torch_wprox.closure.watch import Watch, checked_callback, checked_seconds


def test_a_watch_without_callback_clock_or_log_is_not_needed() -> None:
    assert not Watch().is_needed
    assert not Watch().note(1, 1.0, 1.0, 1.0)


def test_a_callback_gets_the_numbers_and_a_true_answer_ends() -> None:
    seen: list[Progress] = []
    watch = Watch(lambda p: seen.append(p) or p.evaluation >= 2)
    assert not watch.note(1, 3.0, 2.0, 1.0)
    assert watch.note(2, 2.5, 2.0, 0.5, lower_bound=1.0)
    assert watch.has_ended
    assert (seen[1].evaluation, seen[1].objective, seen[1].best) == (2, 2.5, 2.0)
    assert (seen[1].residual, seen[1].lower_bound) == (0.5, 1.0)
    assert 0 <= seen[0].seconds <= seen[1].seconds


def test_the_clock_ends_a_step_without_a_callback() -> None:
    watch = Watch(seconds=1e-9)
    assert watch.note(1, 1.0, 1.0, 1.0)
    assert watch.is_over()
    assert not Watch(seconds=3600.0).is_over()


def test_the_first_rank_decides_for_all() -> None:
    def first_rank_says_no(flag: Tensor) -> Tensor:
        return torch.zeros_like(flag)

    def first_rank_says_yes(flag: Tensor) -> Tensor:
        return torch.ones_like(flag)

    assert not Watch(lambda p: True, agree=first_rank_says_no).note(1, 1.0, 1.0, 1.0)
    assert Watch(lambda p: False, agree=first_rank_says_yes).note(1, 1.0, 1.0, 1.0)


def test_debug_logging_tells_every_evaluation(caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, logger="torch_wprox"):
        Watch().note(7, 0.5, 0.25, math.nan)
    assert "evaluation 7: objective 0.5, best 0.25" in caplog.text


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan])
def test_a_time_budget_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="seconds must be > 0"):
        checked_seconds(wrong)


def test_a_callback_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="callback must be None or callable"):
        checked_callback(3)
    with pytest.raises(TypeError, match="seconds must be a number"):
        checked_seconds("soon")
