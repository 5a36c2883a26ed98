"""Tests of scripts/training/schedules.py: iterations per epoch by table, and the learning rate by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser

from scripts.training import iterations_per_epoch, polynomial_decay


@pytest.mark.parametrize(
    "max_iterations, at_most, length",
    [
        (17000, 100, 100),
        (1000, 100, 100),
        (200, 100, 100),
        (99, 100, 99),
        (150, 100, 75),
        (4, 100, 4),
        (1, 100, 1),
        (7, 100, 7),
        (202, 100, 202),  # 2 * 101: no divisor from 10 to 100
        (101, 100, 101),  # prime
        (1009, 100, 1009),  # prime
        (110, 100, 55),
        (121, 100, 11),
        (60, 8, 6),
        (13, 1, 1),
    ],
)
def test_epoch_is_the_largest_fitting_divisor_or_the_whole_run(max_iterations, at_most, length):
    assert iterations_per_epoch(max_iterations, at_most=at_most) == length


def test_whole_epochs_end_exactly_at_every_number_of_iterations():
    assert all(n % iterations_per_epoch(n) == 0 for n in range(1, 1000))


@pytest.mark.parametrize("value", [0, -5, 1.5, "100", None])
def test_a_number_of_iterations_that_is_no_positive_integer_is_quoted(value):
    with pytest.raises(ValueError, match=rf"max_iterations is {value!r}"):
        iterations_per_epoch(value)


@pytest.mark.parametrize("iteration, factor", [(0, 1.0), (1, 0.75**0.9), (2, 0.5**0.9), (3, 0.25**0.9)])
def test_factor_is_the_remaining_part_to_the_power_of_nine_tenths(iteration, factor):
    assert polynomial_decay(4)(iteration) == pytest.approx(factor)


def test_power_may_be_chosen():
    assert polynomial_decay(4, power=2.0)(2) == pytest.approx(0.25)


def test_factor_stays_at_that_of_the_last_iteration_and_above_zero():
    factor = polynomial_decay(10)
    assert factor(10) == factor(11) == factor(1000) == factor(9) > 0
    assert polynomial_decay(1)(5) == 1.0


def test_every_step_of_a_scheduled_optimizer_uses_the_factor_of_its_iteration():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, polynomial_decay(5))
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.01 * (1 - min(t, 4) / 5) ** 0.9 for t in range(7)])


def test_the_benchmarks_budget_divides_the_learning_rate_by_ten_twice():
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs/train.json"), str(ROOT / "configs/budgets/benchmark.json")])
    assert parser["max_iterations"] == 6000
    parser.update({"base_filters": 2, "max_iterations": 12, "device": "$torch.device('cpu')"})
    optimizer, scheduler = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.01] * 5 + [0.001] * 5 + [0.0001] * 2)
