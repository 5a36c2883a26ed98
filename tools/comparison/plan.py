"""Plan: which runs a comparison consists of, read from a JSON file and checked before any of them starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.data.datalist import EVALUATED

EVALUATE = "configs/evaluate.json"
RECORD = "configs/record.json"
KEYS = {"about", "configs", "common", "methods", "num_labeled", "seeds", "baseline"}
METHOD_KEYS = {"configs", "overrides", "num_labeled"}
# Set for every run by the comparison itself.
RESERVED = {"seed", "num_labeled", "dataset_dir", "output_dir", "ckpt_dir", "device", "bundle_root"}
# Where a run reads and computes may change between two calls; what it computes may not.
LOCATION = {"dataset_dir", "output_dir", "ckpt_dir", "device"}


class PlanError(ValueError):
    """The plan, or what lies where it wants to write, is at fault; the message names the value and the remedy."""


@dataclass(frozen=True)
class Method:
    """A method of a plan.

    Attributes:
        configs: overlay files, merged after those of the plan.
        overrides: config ids and values, after the plan's common ones.
        of_evaluation: those ids, of the common ones too, that training does not have, such as decoders.
        num_labeled: numbers of labeled cases.
    """

    configs: tuple[str, ...]
    overrides: Mapping[str, Any]
    num_labeled: tuple[int, ...]
    of_evaluation: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        method: name in the plan.
        num_labeled: labeled cases.
        seed: of the weights and of the crops.
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

    @property
    def name(self) -> str:
        return f"{self.method}_{self.num_labeled}_{self.seed}"

    def arguments(self, run_id: str, dataset_dir: str | Path, device: str | None = None) -> dict[str, Any]:
        """What ``python -m monai.bundle run --args_file`` needs to do ``run_id``, "training" or "evaluation"."""
        last = {"training": RECORD, "evaluation": EVALUATE}[run_id]
        return {
            "run_id": run_id,
            "config_file": [*self.configs, last],
            **{k: v for k, v in self.overrides.items() if run_id == "evaluation" or k not in self.of_evaluation},
            "num_labeled": self.num_labeled,
            "seed": self.seed,
            "dataset_dir": str(dataset_dir),
            "output_dir": str(self.folder),
            "ckpt_dir": str(self.folder / "models"),
            **({"device": f"$torch.device('{device}')"} if device else {}),
        }

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
        return (json.loads(path.read_text()) if path.is_file() else {}).get("evaluation_list", EVALUATED[0])

    def check_settings(self, dataset_dir: str | Path, *, evaluate_again: bool = False) -> None:
        """Refuses a folder in which something else was trained or evaluated, which would be taken for this run's.

        Args:
            dataset_dir: of the data set.
            evaluate_again: evaluations with other settings will be replaced.

        Raises:
            PlanError: naming the settings that differ.
        """
        begun = any((self.folder / "checkpoints").glob("*.pt"))
        if (begun or self.trained or self.finished) and (values := self.changed_settings("training", dataset_dir)):
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
        old, new = json.loads(before.read_text()), json.loads(json.dumps(self.arguments(run_id, dataset_dir)))
        differing = sorted(k for k in old.keys() | new.keys() if k not in LOCATION and old.get(k) != new.get(k))
        return "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing)


@dataclass(frozen=True)
class Plan:
    """A comparison: every method at each of its numbers of labels from every seed, all else alike.

    Attributes:
        configs: config files of all runs.
        common: overrides of all runs.
        methods: by name.
        num_labeled: numbers of labeled cases, ascending.
        seeds: at least one.
        baseline: the method against which the others are tested.
    """

    configs: tuple[str, ...]
    common: Mapping[str, Any]
    methods: Mapping[str, Method]
    num_labeled: tuple[int, ...]
    seeds: tuple[int, ...]
    baseline: str

    def runs(self, output_dir: str | Path) -> list[Run]:
        """All runs; a comparison that is broken off has all methods of the first seeds, not all seeds of one method."""
        return [
            Run(
                name,
                labels,
                seed,
                (*self.configs, *method.configs),
                {**self.common, **method.overrides},
                Path(output_dir) / f"{name}_{labels}_{seed}",
                method.of_evaluation,
            )
            for seed in self.seeds
            for labels in self.num_labeled
            for name, method in self.methods.items()
            if labels in method.num_labeled
        ]


def read_plan(path: str | Path) -> Plan:
    """Reads and checks a plan (docs/comparison.md says what it holds).

    Config files are relative to the current directory, as those of the bundle's commands.

    Raises:
        PlanError: when the file is missing or no JSON, a key is missing or unknown, a config file does not exist, an
            override names an id that no config has, or one that the comparison sets itself.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist: give a plan, such as configs/plans/hippocampus.json.") from None
    except json.JSONDecodeError as error:
        raise PlanError(f"{path} is not valid JSON ({error}): correct the file.") from None
    if not isinstance(content, dict):
        raise PlanError(f"{path} holds no JSON object: a plan has {sorted(KEYS)}.")
    missing, unknown = KEYS - {"about", "common"} - set(content), set(content) - KEYS
    if missing or unknown:
        raise PlanError(
            f"{path}: keys missing: {sorted(missing)}; unknown: {sorted(unknown)}. A plan has {sorted(KEYS)}."
        )
    for key, kind, what in (("configs", list, "a list"), ("common", dict, "an object"), ("methods", dict, "an object")):
        if not isinstance(content.get(key, kind()), kind):
            raise PlanError(f"{path}: {key} is {content[key]!r}; it must be {what}.")
    labels = _whole_numbers(path, "num_labeled", content["num_labeled"])
    methods = {name: _method(path, name, entry, labels) for name, entry in content["methods"].items()}
    if content["baseline"] not in methods:
        raise PlanError(f"{path}: baseline is {content['baseline']!r}; it must be one of {list(methods)}.")
    plan = Plan(
        configs=tuple(content["configs"]),
        common=content.get("common", {}),
        methods=methods,
        num_labeled=tuple(sorted({n for method in methods.values() for n in method.num_labeled})),
        seeds=_whole_numbers(path, "seeds", content["seeds"]),
        baseline=content["baseline"],
    )
    for name, method in methods.items():
        files, overrides = [*plan.configs, *method.configs], {**plan.common, **method.overrides}
        methods[name] = replace(method, of_evaluation=_check_configs(path, name, files, overrides))
    return plan


def _whole_numbers(path: Path, key: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values or not all(type(v) is int and v >= 0 for v in values):
        raise PlanError(f"{path}: {key} is {values!r}; it must be a list of whole numbers, at least one.")
    if len(set(values)) < len(values):
        raise PlanError(f"{path}: {key} is {values}; each number may be there once.")
    return tuple(values)


def _method(path: Path, name: str, entry: Any, labels: tuple[int, ...]) -> Method:
    """A method from a list of overlay files or from an object with "configs", "overrides" and "num_labeled"."""
    entry = {"configs": entry} if isinstance(entry, list) else entry
    if not isinstance(entry, dict) or set(entry) - METHOD_KEYS:
        raise PlanError(
            f"{path}: method {name!r} is {entry!r}; it must be a list of overlay files or an object with some of "
            f"{sorted(METHOD_KEYS)}."
        )
    if not name or set(name) & set("/\\ "):
        raise PlanError(f"{path}: {name!r} is no name for a method: it becomes a folder, without slashes and spaces.")
    if not isinstance(entry.get("overrides", {}), dict) or not isinstance(entry.get("configs", []), list):
        raise PlanError(f"{path}: method {name!r}: configs must be a list and overrides an object.")
    own = entry.get("num_labeled")
    return Method(
        tuple(entry.get("configs", [])),
        entry.get("overrides", {}),
        labels if own is None else _whole_numbers(path, f"num_labeled of {name}", own),
    )


def _check_configs(path: Path, name: str, files: Sequence[str], overrides: Mapping[str, Any]) -> frozenset[str]:
    """Refuses files and overrides that do not fit; returns the overrides whose ids evaluate.json alone has."""
    absent = [file for file in [*files, EVALUATE, RECORD] if not Path(file).is_file()]
    if absent:
        raise PlanError(
            f"{path}: method {name!r} needs {absent[0]}, which does not exist in {Path.cwd()}: correct the plan, or "
            "start the comparison in the bundle's root."
        )
    reserved = sorted(RESERVED & set(overrides))
    if reserved:
        raise PlanError(
            f"{path}: method {name!r} overrides {reserved}, which the comparison sets for each run: use num_labeled "
            "and seeds of the plan, and the options of the command."
        )
    if overrides.get("evaluation_list", EVALUATED[0]) not in EVALUATED:
        raise PlanError(
            f"{path}: evaluation_list is {overrides['evaluation_list']!r}; it must be one of {', '.join(EVALUATED)}."
        )
    parser = ConfigParser()
    parser.read_config(list(files))
    of_evaluation = frozenset(key for key in overrides if key.partition("#")[0] not in parser)
    parser.read_config([*files, EVALUATE])
    unknown = sorted(key for key in overrides if key not in parser)
    if unknown:
        raise PlanError(f"{path}: method {name!r} overrides {unknown}, ids that none of its config files has.")
    return of_evaluation
