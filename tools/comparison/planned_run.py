"""Planned run: one training and its evaluation, what its commands are given, and how far its folder says it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.data.datalist import EVALUATED
from scripts.errors import UserError

EVALUATE = "configs/evaluate.json"
RECORD = "configs/record.json"
# Where a run reads and computes may change between two calls; what it computes may not.
LOCATION = {"dataset_dir", "output_dir", "ckpt_dir", "device"}


class PlanError(UserError):
    """The plan, or what lies where it wants to write, is at fault; the message names the value and the remedy."""


def run_name(method: str, num_labeled: int, seed: int, draw: int) -> str:
    """The name of a run and of its folder. Draw 0 is not in it: a plan that gets further draws keeps its runs."""
    return f"{method}_{num_labeled}_{seed}" + (f"_draw{draw}" if draw else "")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        method: name in the plan.
        num_labeled: labeled cases.
        seed: of the weights and of the crops.
        draw: which cases are the labeled ones, ``labeled_draw`` of the configs; 0 for the first of the list.
        configs: config files of the training, in the order of merging.
        overrides: common ones and the method's own.
        folder: receives all that the run writes.
        of_evaluation: ids among the overrides that training does not have.
    """

    method: str
    num_labeled: int
    seed: int
    configs: tuple[str, ...]
    overrides: Mapping[str, Any]
    folder: Path
    of_evaluation: frozenset[str] = frozenset()
    draw: int = 0

    @property
    def name(self) -> str:
        return run_name(self.method, self.num_labeled, self.seed, self.draw)

    def arguments(self, run_id: str, dataset_dir: str | Path, device: str | None = None) -> dict[str, Any]:
        """What ``python -m monai.bundle run --args_file`` needs to do ``run_id``, "training" or "evaluation"."""
        last = {"training": RECORD, "evaluation": EVALUATE}[run_id]
        return {
            "run_id": run_id,
            "config_file": [*self.configs, last],
            **{k: v for k, v in self.overrides.items() if run_id == "evaluation" or k not in self.of_evaluation},
            "num_labeled": self.num_labeled,
            "labeled_draw": self.draw,
            "seed": self.seed,
            "dataset_dir": str(dataset_dir),
            "output_dir": str(self.folder),
            "ckpt_dir": str(self.folder / "models"),
            **({"device": f"$torch.device('{device}')"} if device else {}),
        }

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint that a training goes on from."""
        return any((self.folder / "checkpoints").glob("*.pt"))

    @property
    def trained(self) -> bool:
        """Whether the training went through to its end."""
        return (self.folder / "record.json").is_file()

    @property
    def finished(self) -> bool:
        """Whether the cases were evaluated: all but those that failed, and at least one."""
        metrics = self.folder / "metrics.csv"
        if not ((self.folder / "metrics_summary.csv").is_file() and metrics.is_file()):
            return False
        return len(metrics.read_text(encoding="utf-8").splitlines()) > 1

    @property
    def evaluated_list(self) -> str:
        """The list of dataset.json that was evaluated; "test" where the comparison did not do it."""
        path = self.folder / "evaluation.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content.get("evaluation_list", EVALUATED[0])

    def check_settings(self, dataset_dir: str | Path, *, evaluate_again: bool = False) -> None:
        """Refuses a folder in which something else was trained or evaluated, which would be taken for this run's.

        With ``evaluate_again`` evaluations with other settings will be replaced.

        Raises:
            PlanError: naming the settings that differ.
        """
        if (self.begun or self.trained or self.finished) and (values := self.changed_settings("training", dataset_dir)):
            raise PlanError(
                f"{self.folder} holds a run with other settings: {values}. Choose another output_dir or "
                "remove the folder."
            )
        if self.finished and not evaluate_again and (values := self.changed_settings("evaluation", dataset_dir)):
            raise PlanError(
                f"{self.folder} was evaluated with other settings: {values}. Add --evaluate_again, which replaces its "
                "results without training, or choose another output_dir."
            )

    def changed_settings(self, run_id: str, dataset_dir: str | Path) -> str:
        """The settings in which what was done as ``run_id`` differs from what is to be done; empty if in none."""
        before = self.folder / f"{run_id}.json"
        if not before.is_file():
            return ""
        # Runs of versions that knew no draws had the first cases of the list.
        old = {"labeled_draw": 0, **json.loads(before.read_text(encoding="utf-8"))}
        new = json.loads(json.dumps(self.arguments(run_id, dataset_dir)))
        differing = sorted(k for k in old.keys() | new.keys() if k not in LOCATION and old.get(k) != new.get(k))
        return "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing)
