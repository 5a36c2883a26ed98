"""Plan: which runs a comparison consists of, read from a JSON file and checked before any of them starts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.data.datalist import EVALUATED
from scripts.setting_checks import unknown_part

from .planned_run import EVALUATE, RECORD, PlanError, Run, run_name

OPTIONAL = {"about", "common", "labeled_draws", "ceiling"}
KEYS = {"configs", "methods", "num_labeled", "seeds", "baseline", *OPTIONAL}
METHOD_KEYS = {"configs", "overrides", "num_labeled"}
# Set for every run by the comparison itself.
RESERVED = {"seed", "num_labeled", "labeled_draw", "dataset_dir", "output_dir", "ckpt_dir", "device", "bundle_root"}


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
class Plan:
    """A comparison: every method at each of its numbers of labels from every draw and seed, all else alike.

    Attributes:
        configs: config files of all runs.
        common: overrides of all runs.
        methods: by name.
        num_labeled: numbers of labeled cases, ascending.
        seeds: at least one.
        baseline: the method against which the others are tested; labels only, where there is a ceiling.
        labeled_draws: which cases are labeled, at least one.
        ceiling: the method that is trained with all labels, from every seed and the first draw alone; or None.
    """

    configs: tuple[str, ...]
    common: Mapping[str, Any]
    methods: Mapping[str, Method]
    num_labeled: tuple[int, ...]
    seeds: tuple[int, ...]
    baseline: str
    labeled_draws: tuple[int, ...] = (0,)
    ceiling: str | None = None

    def runs(self, output_dir: str | Path) -> list[Run]:
        """All runs; a comparison that is broken off has all methods of the first seeds, not all seeds of one method."""
        return [
            Run(
                name,
                labels,
                seed,
                (*self.configs, *method.configs),
                {**self.common, **method.overrides},
                Path(output_dir) / run_name(name, labels, seed, draw),
                method.of_evaluation,
                draw,
            )
            for draw in self.labeled_draws
            for seed in self.seeds
            for labels in self.num_labeled
            for name, method in self.methods.items()
            # All labels leave nothing to draw.
            if labels in method.num_labeled and (name != self.ceiling or draw == self.labeled_draws[0])
        ]


def read_plan(path: str | Path) -> Plan:
    """Reads and checks a plan (docs/comparison.md says what it holds).

    Config files are relative to the current directory, as those of the bundle's commands.

    Raises:
        PlanError: when the file is missing or no JSON, a key is missing or unknown, a config file does not exist or the
            first has no training, an override names an id that no config has, or one that the comparison sets itself.
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
    missing, unknown = KEYS - OPTIONAL - set(content), set(content) - KEYS
    if missing or unknown:
        raise PlanError(
            f"{path}: keys missing: {sorted(missing)}; unknown: {sorted(unknown)}. A plan has {sorted(KEYS)}."
        )
    for key, kind, what in (("configs", list, "a list"), ("common", dict, "an object"), ("methods", dict, "an object")):
        if not isinstance(content.get(key, kind()), kind):
            raise PlanError(f"{path}: {key} is {content[key]!r}; it must be {what}.")
    labels = _whole_numbers(path, "num_labeled", content["num_labeled"])
    methods = {name: _method(path, name, entry, labels) for name, entry in content["methods"].items()}
    if content["baseline"] not in [*methods]:
        raise PlanError(f"{path}: baseline is {content['baseline']!r}; it must be one of {list(methods)}.")
    ceiling = content.get("ceiling")
    if ceiling is not None and (
        ceiling not in [*methods] or ceiling == content["baseline"] or len(methods[ceiling].num_labeled) != 1
    ):
        raise PlanError(
            f"{path}: ceiling is {ceiling!r}; it must be a method other than the baseline, with one num_labeled of its "
            'own, that of all labels: {"configs": [...], "num_labeled": [160]}.'
        )
    plan = Plan(
        configs=tuple(content["configs"]),
        common=content.get("common", {}),
        methods=methods,
        num_labeled=tuple(sorted({n for method in methods.values() for n in method.num_labeled})),
        seeds=_whole_numbers(path, "seeds", content["seeds"]),
        baseline=content["baseline"],
        labeled_draws=_whole_numbers(path, "labeled_draws", content.get("labeled_draws", [0])),
        ceiling=ceiling,
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
            f"{path}: method {name!r} overrides {reserved}, which the comparison sets for each run: use num_labeled, "
            "seeds and labeled_draws of the plan, and the options of the command."
        )
    if overrides.get("evaluation_list", EVALUATED[0]) not in EVALUATED:
        raise PlanError(
            f"{path}: evaluation_list is {overrides['evaluation_list']!r}; it must be one of {', '.join(EVALUATED)}."
        )
    if not files or "training" not in ConfigParser.load_config_file(files[0]):
        raise PlanError(
            f"{path}: configs of method {name!r} begin with {files[0] if files else 'nothing'}, which has no training: "
            "put configs/train.json first in the plan's configs, and overlays behind it."
        )
    parser = ConfigParser()
    parser.read_config(list(files))
    of_evaluation = frozenset(key for key in overrides if key.partition("#")[0] not in parser)
    parser.read_config([*files, EVALUATE])
    unknown = sorted(key for key in overrides if unknown_part(key, parser.get(), given=overrides))
    if unknown:
        raise PlanError(f"{path}: method {name!r} overrides {unknown}, ids that none of its config files has.")
    return of_evaluation
