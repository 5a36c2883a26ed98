"""Page: ``run.html``, which shows how a training goes while it goes, and ``README.txt``, which explains its folder."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from ignite.engine import Engine, Events

from scripts.files import write_text
from scripts.pictures.html import chart, page, picture, table

from .handlers import rows_of
from .trainer import RunEvents

logger = logging.getLogger(__name__)

SECONDS = 20  # between two renewals
MOST_PICTURES = 12  # evenly spread ones of more
README = """What the files of this folder are. Not every run writes all of them.

run.html              open it in a browser: curves, pictures, settings; renewed while the training runs
training_log.csv      loss, learning rate, and every term of the loss with its weight, over the iterations
validation_log.csv    the metrics of every validation
pictures/             crops with what the network made of them (--picture_interval)
models/model.pt       the weights at the end; models/model.json has the settings that belong to them
models/model_best.pt  the weights of the best validation, with model_best.json
config.json           all settings: python -m scripts evaluate --run THIS_FOLDER starts from it
run.json              when, where, by which command and on which data the training was started
record.json           time, memory and machine of a training that came to its end (configs/record.json)
preflight.txt         what was checked before the start; preflight.json has the same for programs
checkpoints/          the last two states of the training; the same command goes on from the newer one
reproducer/           the step at which a loss was not finite
mlruns.db, mlruns/    the same figures for MLflow; tensorboard/ for TensorBoard

CASE_seg.nii.gz       the mask of a case of the evaluation
metrics.csv           the metrics of every case and class; metrics_summary.csv has their means
failures.csv          cases that could not be read, segmented or written, and why
masks/                masks of new volumes (python -m scripts infer)
training.json, evaluation.json, run.log, run.lock   of a comparison: arguments, output, lock
"""
# What a term does, by its name or the first word of it.
WORDS = {
    "supervised": "The error against the labels of the labeled crops. It should fall fast, then slowly.",
    "consistency": "How much predictions differ that should be the same. Near 0 at first, since all say the same; it "
    "rises while the network learns the object, then it should stay small.",
    "pseudo": "The error against pseudo-labels. It should fall with the supervised terms; if it falls to 0 while the "
    "validation stands still, the network only confirms itself.",
    "adversarial": "How far the discriminator tells unlabeled from labeled crops. It should neither vanish nor grow.",
    "entropy": "How undecided the predictions are. It should fall slowly, behind the supervised terms.",
    "mistake": "The error where exactly one of two networks is confident. It should fall.",
    "contrastive": "How far uncertain features are from their class's prototype, less that to others. It should fall.",
    "features": "The error against pseudo-labels with features dropped. It should follow the pseudo-label term.",
}
WORDS |= {"mutual": WORDS["consistency"], "cosine": WORDS["consistency"], "uncertainty": WORDS["consistency"]}
WORDS |= {name: WORDS["pseudo"] for name in ("mixed", "cross", "strong")}
MEASURES = {
    "unanimous": "The share of voxels where all heads agree. It should rise.",
    "confident": "The share of voxels whose pseudo-label is confident enough to be used. It should rise.",
    "believed": "The share of voxels whose pseudo-label is used. It should rise.",
    "pseudo": "The share of foreground in the pseudo-labels. It should settle near that of the labels.",
}
WEIGHT, NORM = "_weight", "_gradient_norm"
Rows = Sequence[Mapping[str, str]]


class RunPage:
    """Writes ``<output_dir>/run.html``, at most every 20 seconds and at the end, and ``<output_dir>/README.txt``.

    Stand behind the handlers that write the logs and pictures, from which the page is made.

    Args:
        output_dir: of the run.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.written = -math.inf

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._explain)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._renew)
        engine.add_event_handler(RunEvents.ENDED, self._end)

    def _explain(self, engine: Engine) -> None:
        write_text(self.output_dir / "README.txt", README)

    def _renew(self, engine: Any) -> None:
        if time.monotonic() - self.written >= SECONDS:
            self._write(f"Running. This page renews itself every {SECONDS} seconds.", refresh=SECONDS)

    def _end(self, engine: Any) -> None:
        error = engine.state.error
        self._write("" if error is None else f"Stopped: {type(error).__name__}: {error}")

    def _write(self, state: str, *, refresh: int | None = None) -> None:
        try:
            write_page(self.output_dir, training_parts(self.output_dir, state), refresh=refresh)
        except Exception:  # no page is worth a training
            logger.warning("run.html could not be written; training goes on.", exc_info=True)
        self.written = time.monotonic()


def write_page(
    folder: str | Path, parts: Sequence[str], *, title: str | None = None, refresh: int | None = None
) -> Path:
    """Writes ``run.html`` into ``folder``, whose name is the default ``title``, and returns its path."""
    path = Path(folder) / "run.html"
    title = title or path.resolve().parent.name
    write_text(path, page(title, [f"<h1>{escape(title)}</h1>", *parts], refresh=refresh))
    return path


def training_parts(folder: str | Path, state: str = "") -> list[str]:
    """What a page says about a training, finished or not, as pieces of HTML; none before its log has a row.

    Args:
        folder: output_dir of the training, with training_log.csv. validation_log.csv, run.json and pictures/ are used
            if they are there.
        state: a sentence on whether it runs.
    """
    folder = Path(folder)
    log, validations = rows_of(folder / "training_log.csv"), rows_of(folder / "validation_log.csv")
    if not log:
        return []
    description = folder / "run.json"
    about = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
    config = about.get("config") or {}
    parts = [
        f"<p>{escape(_summary(log[-1], validations, config, ended=not state))} <b>{escape(state)}</b></p>",
        "<h2>Curves</h2>",
        f'<div class="charts">{"".join(charts(log, validations))}</div>',
        *_pictures(sorted((folder / "pictures").glob("iteration_*.png"))),
        *_starts(about.get("starts", [])),
    ]
    if config:
        text = escape(json.dumps(config, indent=4))
        parts.append(f"<h2>Config</h2>\n<details><summary>merged</summary><pre>{text}</pre></details>")
    return parts


def charts(log: Rows, validations: Rows) -> list[str]:
    """A chart for the validation, the loss, each of its terms and what else was logged, with words."""
    terms = [name.removesuffix(WEIGHT) for name in log[0] if name.endswith(WEIGHT)]
    known = {"iteration", "seconds", "learning_rate", "loss", "gradient_norm"}
    known |= {term + suffix for term in terms for suffix in ("", WEIGHT, NORM)}
    measured = [name for name in log[0] if name not in known]
    metrics = [name for name in (validations[0] if validations else ()) if name not in ("iteration", "epoch")]
    norms = {term: curve(log, term + NORM) for term in terms}
    words = "The metric of every validation, on the validation cases. It should rise, then level off."
    return [
        chart({name: curve(validations, name) for name in metrics}, "validation", words),
        chart({"loss": curve(log, "loss")}, "loss", words_on_loss(log, terms)),
        *(chart({term: curve(log, term)}, term, _words_on_term(log, term)) for term in terms),
        *(chart({name: curve(log, name)}, name, MEASURES.get(name.split("_")[0], "")) for name in measured),
        chart(norms, "gradient norms of the terms", "How strongly each term pulls at the weights, before weighting."),
        chart(
            {"": curve(log, "gradient_norm")}, "gradient norm", "Of the weighted sum. Peaks are normal, a rise is not."
        ),
        chart({"": curve(log, "learning_rate")}, "learning rate"),
    ]


def curve(rows: Rows, column: str) -> list[tuple[float, float]]:
    """(iteration, value) of the rows that have a value in the column."""
    return [(float(row["iteration"]), float(row[column])) for row in rows if row.get(column)]


def words_on_loss(log: Rows, terms: Sequence[str]) -> str:
    """Whether the loss, the weighted sum of the terms, falls as it should, or rises only since weights rise."""
    count = max(1, len(log) // 10)

    def course(values: Sequence[float]) -> tuple[float, float]:
        return fmean(values[:count]), fmean(values[-count:])

    weights = {term: float(log[-1].get(term + WEIGHT) or 0) for term in terms}
    then, now = course([float(row["loss"]) for row in log])
    if now <= then:
        return f"The weighted sum of the terms below. It fell from {then:.3g} to {now:.3g}, as it should."
    said = f"The weighted sum of the terms below. It rose from {then:.3g} to {now:.3g}"
    fixed = course([sum(weights[term] * float(row.get(term) or 0) for term in terms) for row in log])
    if fixed[1] <= fixed[0]:
        return (
            f"{said} because weights rise (ramps), which is normal: at the present weights it would have fallen from "
            f"{fixed[0]:.3g} to {fixed[1]:.3g}."
        )
    return f"{said}, and ramps do not explain it: see which term rises. A lower learning_rate may help."


def _words_on_term(log: Rows, term: str) -> str:
    words = WORDS.get(term.split("_")[0], "")
    weights = [weight for _, weight in curve(log, term + WEIGHT)]
    if not weights:
        return words
    ramp = f", up from {weights[0]:.3g}" if weights[-1] > weights[0] else ""
    return f"{words} Its weight is {weights[-1]:.3g}{ramp}.".strip()


def _summary(last: Mapping[str, str], validations: Rows, config: Mapping[str, Any], *, ended: bool) -> str:
    parts = [config[name] for name in ("objective", "network_def") if isinstance(config.get(name), dict)]
    what = "".join(f"{part['_target_'].rsplit('.', 1)[-1]}, " for part in parts if "_target_" in part)
    planned, done, seconds = config.get("max_iterations"), int(last["iteration"]), float(last["seconds"])
    text = f"{what}iteration {done}{f' of {planned}' if isinstance(planned, int) else ''} after {seconds / 60:.1f} min"
    if isinstance(planned, int) and not ended:
        text += f", {seconds / done * (planned - done) / 60:.1f} min of training left"
    metrics = list(validations[-1])[2:3] if validations else []
    for name in metrics:
        best = max(validations, key=lambda row: float(row[name]))
        text += f"; last {name} {float(validations[-1][name]):.3f}"
        text += f", best {float(best[name]):.3f} at iteration {best['iteration']}"
    return f"{text}."


def _pictures(paths: Sequence[Path]) -> list[str]:
    if not paths:
        return []
    step = max(1, -(-len(paths) // MOST_PICTURES))
    shown = list(reversed(paths[::-1][::step]))  # the last one is always among them
    note = f"{len(shown)} of the {len(paths)} in {paths[0].parent.name}/."
    return ["<h2>Pictures</h2>", f'<p class="note">{note}</p>', *(picture(p.read_bytes(), p.stem) for p in shown)]


def _starts(starts: Sequence[dict[str, Any]]) -> list[str]:
    if not starts:
        return []
    names = list(dict.fromkeys(name for start in starts for name in start))
    rows = [[name, *(_text(start.get(name)) for start in starts)] for name in names]
    header = ["", *(f"start {number}" for number in range(1, len(starts) + 1))]
    return ["<h2>Command and environment</h2>", table(header, rows)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(inner)}" for name, inner in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)
