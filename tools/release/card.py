"""Model card: the parts of docs/README.md that are made from a run's files: how it was trained and how good it is."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fire.parser import DefaultParseValue

from scripts.command import monais_command
from scripts.errors import UserError
from scripts.evaluation.metrics import OVERLAPS
from scripts.overrides import read_command
from tools.reports.results import CaseVolumes, EvaluationResults, shown
from tools.tables import METRIC_TITLES, markdown_table

FAILURES = 3
# What a reader of the card gives anew.
FOLDERS = ("dataset_dir", "output_dir", "ckpt_dir", "bundle_root")


def fill(card: str, parts: Mapping[str, str]) -> str:
    """``card`` with the text between its markers replaced.

    The marker of a part is ``<!-- begin NAME -->`` and ``<!-- end NAME -->``, each a line of its own.

    Raises:
        UserError: when the card lacks a part's markers.
    """
    for name, text in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        before, found, rest = card.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"the model card lacks the lines {begin.strip()} and {end.strip()}: put them back.")
        card = f"{before}{begin}{text.rstrip()}\n{end}{after}"
    return card


# --- how it was trained ---


def training_rows(settings: Mapping[str, Any], record: Mapping[str, Any], starts: Sequence[Mapping]) -> list[list[str]]:
    """What was trained, on what, how long and where.

    Args:
        settings: see :func:`tools.release.model.settings_of_run`.
        record: content of record.json.
        starts: of run.json.
    """
    cases, spacing = settings["cases"], settings["spacing"]
    minutes = record["training_seconds"] / 60
    memory = record["peak_gpu_memory_mb"] or record["peak_memory_mb"]
    rows = [
        ["objective", f"`{settings['objective']}`"],
        [
            "network",
            f"`{settings['network']}`, {settings['base_filters']} base filters, {record['parameters']:,} parameters",
        ],
        ["normalisation", settings["normalization"]],
        ["dropout", str(settings["dropout"])],
        ["voxels", f"{by(spacing)} mm" if spacing else "as in the files"],
        ["patch", f"{by(settings['patch_size'])} voxels"],
        ["cases", ", ".join(f"{count} {name}" for name, count in cases.items())],
        [
            "crops of an iteration",
            f"{settings['labeled_batch_size']} labeled, {settings['unlabeled_batch_size']} unlabeled",
        ],
        ["optimiser", f"`{settings['optimizer']}`, learning rate {settings['learning_rate']}"],
        ["iterations", f"{record['iterations']:,}; seed {settings['seed']}"],
        ["time to train", f"{minutes:.0f} min on {record['device']}, {record['threads']} thread(s)"],
        ["largest memory", f"{memory / 1024:.1f} GB" if memory else "not measured"],
        ["versions", f"torch {record['torch']}, MONAI {record['monai']}, Python {record['python']}"],
        ["code", f"commit {record['git_commit']}" if record["git_commit"] else "without git"],
    ]
    if len(starts) > 1:
        rows.append(["interrupted", f"{len(starts) - 1} time(s), and continued"])
    return rows


def by(extents: Sequence[float]) -> str:
    return " x ".join(f"{extent:g}" for extent in extents)


def arguments_of_run(run_dir: Path, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of the command that started a run: its config files and overrides, without the folders.

    Args:
        run_dir: where the preset lies, if the run was started by one of the comparison's.
        starts: of run.json.
    """
    words = [str(word) for word in starts[0]["command"]]
    words = words[words.index("run") + 1 :]
    if "--args_file" in words:
        place = words.index("--args_file") + 1
        beside = run_dir / Path(words[place]).name
        words[place] = str(beside) if beside.is_file() else words[place]
    return {name: value for name, value in read_command(words).items() if name not in (*FOLDERS, "run_id")}


def commands(arguments: Mapping[str, Any]) -> str:
    """The commands that train and evaluate again, as a block of Markdown."""
    files = arguments.get("config_file", ["configs/train.json"])
    if isinstance(files, str):
        files = DefaultParseValue(files)
        files = [files] if isinstance(files, str) else files
    # A file from elsewhere is known to its author by name; where it lay is nobody's business.
    files = [Path(file).name if Path(file).is_absolute() else file for file in files]
    given = {name: value for name, value in arguments.items() if name != "config_file"}
    given |= {"dataset_dir": "DIR", "output_dir": "RUN", "ckpt_dir": "RUN/models"}

    def command(run_id: str, *more: str) -> str:
        line = monais_command({"run_id": run_id, **given, "config_file": [*files, *more]})
        return line.replace(" --", " \\\n    --").replace(".json', ", ".json', \\\n    ")

    return f"```sh\n{command('training')}\n{command('evaluation', 'configs/evaluate.json')}\n```"


# --- how good it is ---


def result_rows(results: EvaluationResults) -> list[list[str]]:
    """A row for every class and metric of metrics_summary.csv, with median and worst case from metrics.csv."""
    rows = []
    for line in results.summary:
        name, metric = line["class"], line["metric"]
        cases = [results.value(case, name, metric) for case in results.cases] if name in results.classes else []
        finite = [value for value in cases if math.isfinite(value)]
        worst = (min if metric in OVERLAPS else max)(finite, default=math.nan)
        rows.append(
            [
                name,
                METRIC_TITLES[metric],
                f"{shown(line['mean'])} +- {shown(line['std'])}",
                f"{shown(line.get('ci95_low'))} to {shown(line.get('ci95_high'))}",
                shown(statistics.median(finite)) if finite else "–",
                shown(worst),
                line["n"],
            ]
        )
    return rows


def failure_rows(results: EvaluationResults, volumes: Mapping[str, CaseVolumes]) -> list[list[str]]:
    """A row for every class of the given cases: how far off, and whether too little or too much was found."""
    rows = []
    for case, found in volumes.items():
        millilitres = math.prod(found.spacing) / 1000
        for channel, name in enumerate(results.classes):
            reference, prediction = (
                float(np.count_nonzero(mask[channel])) * millilitres for mask in (found.reference, found.prediction)
            )
            figures = [shown(results.value(case, name, metric)) for metric in ("dice", "hd95_mm", "asd_mm")]
            rows.append([case, name, *figures, f"{reference:.1f}", f"{prediction:.1f}"])
    return rows


def performance(results: EvaluationResults, failures: Mapping[str, CaseVolumes], pictures: Mapping[str, str]) -> str:
    """The part of the card about results and failures.

    Args:
        results: of the evaluation.
        failures: the cases with the lowest Dice, lowest first.
        pictures: what each shows, by its path from the card.
    """
    header = ["class", "metric", "mean +- standard deviation", "95 % interval of the mean", "median", "worst", "n"]
    missed = ["case", "class", "Dice", "95HD (mm)", "ASD (mm)", "reference (ml)", "prediction (ml)"]
    parts = [
        f"Results on {len(results.cases)} report cases, at the resolution of their files. The interval is a bootstrap "
        "over the cases: it shows\nhow the mean varies with other cases of the same kind, not with other trainings or "
        "other data.",
        markdown_table(header, result_rows(results)),
        f"### Failure cases\n\nThe {len(failures)} with the lowest Dice:",
        markdown_table(missed, failure_rows(results, failures)),
        *(f"![{words}]({path})" for path, words in pictures.items()),
    ]
    return "\n\n".join(parts)
