"""Tests of scripts/training/page.py and scripts/pictures/html.py: the page that follows a training, and its curves."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

import scripts.methods as methods
from scripts.methods import Objective
from scripts.pictures.html import chart, page, ticks
from scripts.training import RunEvents, RunPage
from scripts.training.page import WORDS, charts, training_parts, words_on_loss
from tools.reports.run import main as report


def log(*rows: dict[str, float | str]) -> list[dict[str, str]]:
    return [
        {"iteration": str(i), "seconds": str(60 * i)} | {k: str(v) for k, v in row.items()}
        for i, row in enumerate(rows, 1)
    ]


def write(path: Path, rows: list[dict[str, str]], *, ending: str = "") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        file.write(ending)


RAMPING = log(
    {"loss": 1.0, "a": 1.0, "a_weight": 1, "pseudo": 0.9, "pseudo_weight": 0, "share": 0.5},
    {"loss": 1.3, "a": 0.5, "a_weight": 1, "pseudo": 0.8, "pseudo_weight": 1, "share": ""},
)


def test_a_loss_that_rises_with_its_ramps_is_told_from_one_that_rises_by_itself():
    # At the last weights the first row would be 1 + 0.9 = 1.9.
    said = words_on_loss(RAMPING, ["a", "pseudo"])
    assert "rose from 1 to 1.3 because weights rise (ramps)" in said and "from 1.9 to 1.3" in said
    diverging = [RAMPING[0], RAMPING[1] | {"loss": "3", "a": "2.2"}]
    assert "ramps do not explain it" in words_on_loss(diverging, ["a", "pseudo"])
    assert "fell from 1.3 to 1" in words_on_loss(RAMPING[::-1], ["a", "pseudo"])


def test_every_term_and_measure_has_a_chart_with_words():
    titles = [
        re.search("<b>(.*?)</b>", text)[1] for text in charts(RAMPING, log({"epoch": 1, "val_mean_dice": 0.5})) if text
    ]
    assert titles == ["validation", "loss", "a", "pseudo", "share"]
    (pseudo,) = [text for text in charts(RAMPING, []) if "<b>pseudo</b>" in text]
    assert "error against pseudo-labels" in pseudo and "Its weight is 1, up from 0." in pseudo


def test_every_term_of_the_shipped_methods_has_words():
    found = [value for value in vars(methods).values() if isinstance(value, type) and issubclass(value, Objective)]
    terms = {term for objective in found for term in objective.TERMS}
    assert len(terms) > 15 and {term for term in terms if term.split("_")[0] not in WORDS} == set()


def test_curves_lie_where_their_values_are_and_gaps_are_left_out():
    text = chart({"loss": [(1, 0.0), (2, float("nan")), (3, 10.0)]}, "loss")
    points = re.search('points="(.*?)"', text)[1]
    assert points == "56.0,168.0 450.0,8.0"  # the corners of the area
    assert chart({"a": [(1, float("inf"))]}, "") == ""
    many = chart({"loss": [(i, i % 2) for i in range(1000)]}, "")
    assert len(re.search('points="(.*?)"', many)[1].split()) == 200


@pytest.mark.parametrize("low, high", [(0, 1), (0.1194, 0.1194), (-3, -3), (0, 0), (1e-7, 3e-7), (5, 4000), (-2.5, 9)])
def test_ticks_are_few_round_and_span_the_values(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7 and found[0] <= low <= high <= found[-1]
    assert all(len(f"{tick:g}".lstrip("-").replace("0.", "").rstrip("0").split("e")[0]) <= 3 for tick in found)


def test_page_escapes_its_title():
    assert "<title>A &lt;b&gt;</title>" in page("A <b>", [])


def test_page_is_renewed_while_the_training_runs_and_says_how_it_ended(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("scripts.training.page.time.monotonic", lambda: clock.now)
    seen = []

    def step(engine, batch):
        write(tmp_path / "training_log.csv", RAMPING[: engine.state.iteration], ending="3,18")  # a row in the making
        clock.now += 15
        seen.append((tmp_path / "run.html").read_text(encoding="utf-8") if engine.state.iteration > 1 else "")
        if engine.state.iteration == 4:
            raise ValueError("broken <here>")

    engine = Engine(step)
    engine.register_events(*RunEvents, *IterationEvents)
    engine.state.error = None
    RunPage(tmp_path).attach(engine)
    with pytest.raises(ValueError, match="broken"):
        engine.run([0] * 5)
    assert "run.html" in (tmp_path / "README.txt").read_text(encoding="utf-8")
    assert "iteration 1 after 1.0 min" in seen[1] and 'http-equiv="refresh"' in seen[1]
    assert seen[2] == seen[1] and seen[3] != seen[2]  # after 15 seconds, and after 30
    engine.state.error = ValueError("broken <here>")
    engine.fire_event(RunEvents.ENDED)
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Stopped: ValueError: broken &lt;here&gt;" in text and "refresh" not in text


def test_a_page_that_cannot_be_written_does_not_stop_the_training(tmp_path, caplog):
    write(tmp_path / "training_log.csv", RAMPING)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*RunEvents)
    RunPage(tmp_path).attach(engine)
    engine.run([0])
    assert "run.html could not be written" in caplog.text


def test_report_of_a_log_alone_and_of_nothing(tmp_path, capsys):
    assert training_parts(tmp_path) == []
    with pytest.raises(ValueError, match="training_log.csv"):
        report(str(tmp_path))
    write(tmp_path / "training_log.csv", RAMPING)
    report(str(tmp_path), title="mine")
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.html")
    assert "<h1>mine</h1>" in (tmp_path / "run.html").read_text(encoding="utf-8")
