"""``python -m lightning_examples``: any optimizer from the shell or from a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_examples.__main__ import CommandLine, main
from torch_wprox import FrobeniusProx, WassersteinProx

pytest.importorskip("jsonargparse")
CONFIGS = Path(__file__).parents[2] / "lightning_examples" / "configs"
# Of Lightning's calls to jsonargparse and to torch.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*LeafSpec.*"
    ),
]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_examples"])  # it warns of pytest's own
    state = torch.random.get_rng_state()

    def run(*arguments: str, epochs: int = 2) -> CommandLine:
        quiet = ("--trainer.enable_progress_bar", "false", "--trainer.max_epochs", str(epochs))
        return main(["fit", *arguments, *quiet])

    yield run
    torch.random.set_rng_state(state)


def end(cli: CommandLine) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in cli.model.parameters()])


def metrics(cli: CommandLine) -> list[dict[str, str]]:
    with open(Path(cli.trainer.log_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_sinus_is_the_notes_setting(fit: Any) -> None:
    cli = fit("--config", str(CONFIGS / "sinus.yaml"))
    [opt] = cli.trainer.optimizers
    assert isinstance(opt, WassersteinProx)
    assert opt.param_groups[0]["layout"] == "layer"
    assert cli.model.layer.particles.dtype == torch.float64
    # F where all outputs are 0 is the mean of y squared; fifty small neurons sum to a little more.
    assert float(metrics(cli)[0]["prox/loss_before"]) == pytest.approx(0.7448, rel=0.1)
    assert opt.report.loss_after < 0.7


def test_solver_options_and_schedulers_are_read_from_the_file(fit: Any) -> None:
    cli = fit("--config", str(CONFIGS / "diabetes.yaml"))
    [opt] = cli.trainer.optimizers
    assert opt._solver.name == "lbfgs"
    assert opt._solver.history == 20
    assert opt.param_groups[0]["lr"] == pytest.approx(0.3 * 1.1**2)
    assert opt.report.loss_after < opt.report.loss_before


def test_a_later_file_swaps_the_optimizer(fit: Any) -> None:
    files = [x for n in ("diabetes", "adam") for x in ("--config", str(CONFIGS / f"{n}.yaml"))]
    cli = fit(*files)
    assert type(cli.trainer.optimizers[0]) is torch.optim.Adam
    assert not cli.trainer.lr_scheduler_configs
    assert "prox/objective" not in metrics(cli)[0]


@pytest.mark.parametrize(
    ("flags", "optimizer", "gamma"),
    [
        ([], WassersteinProx, 1.0),
        (["torch_wprox.WassersteinProx", "--optimizer.gamma", "1"], WassersteinProx, 1.0),
        (["torch_wprox.FrobeniusProx", "--optimizer.lr", "0.25"], FrobeniusProx, 0.25),
        (["torch_wprox.FrobeniusProx", "--optimizer.solver", "gd"], FrobeniusProx, 1.0),
        (["torch.optim.SGD", "--optimizer.lr", "0.125"], torch.optim.SGD, 0.125),
    ],
)
def test_any_optimizer_is_named_in_the_shell(
    fit: Any, flags: list[str], optimizer: type, gamma: float
) -> None:
    cli = fit(*(["--optimizer", *flags] if flags else []))
    [opt] = cli.trainer.optimizers
    assert type(opt) is optimizer
    assert opt.param_groups[0]["lr"] == gamma


def test_schedulers_are_named_in_the_shell(fit: Any) -> None:
    schedule = ["--lr_scheduler", "torch.optim.lr_scheduler.ExponentialLR"]
    cli = fit(*schedule, "--lr_scheduler.gamma", "0.5")
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("flag", [["--optimizer.lr", "0.25"], ["--optimizer.gamma", "0.25"]])
def test_a_run_is_repeated_from_the_file_that_it_wrote(fit: Any, flag: list[str]) -> None:
    first = fit("--seed_everything", "3", "--optimizer", "torch_wprox.WassersteinProx", *flag)
    written = Path(first.trainer.log_dir) / "config.yaml"
    again = fit("--config", str(written))
    assert again.trainer.optimizers[0].param_groups[0]["lr"] == 0.25
    assert torch.equal(end(first), end(again))


def test_minibatches_of_real_data(fit: Any) -> None:
    cli = fit("--data.name", "diabetes", "--data.batch_size", "100", "--model.in_features", "10")
    assert cli.trainer.global_step == 8
    losses = [float(row["val_loss"]) for row in metrics(cli) if row["val_loss"]]
    assert len(losses) == 2
    assert all(0 < loss < 2 for loss in losses)


def test_a_wrong_value_is_refused_by_the_optimizer_with_the_remedy(fit: Any) -> None:
    with pytest.raises(ValueError, match="gamma must be > 0"):
        fit("--optimizer.gamma", "-1")
