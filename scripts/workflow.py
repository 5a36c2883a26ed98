"""Workflow: runs every command over the configs, with the parser, the checks and the handling of user's errors.

``python -m scripts`` makes it, and ``python -m monai.bundle run`` hands over to it by the first entry of the run lists.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from .errors import UserError, print_briefly, summary
from .files import check_writable
from .overrides import config_files, literal, load_files, read_command, typed
from .setting_checks import UnknownIdError, check_names, check_numbers, check_used, check_window

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ("monai", "bundle", "__main__.py")
TAKE_OVER = {"_target_": "scripts.workflow.take_over"}
# What preflight.json has by itself; the metadata comes from MONAI.
PREFLIGHT_IDS = {"about", "bundle_root", "dataset_dir", "output_dir", "preflight_checks", "preflight", "run", "_meta_"}
# MONAI's clients train the model that they were given; a command never replaces the one that came with the bundle.
SHIPPED_MODELS, MODELS_OF_THE_RUN = "$@bundle_root + '/models'", "$@output_dir + '/models'"

# Arguments of MONAI's runner; None is as good as not given.
RUN_ARGUMENTS = {"config_file", "meta_file", "logging_file", "init_id", "run_id", "final_id", "tracking"}


class SettingError(UserError):
    """A part of the config that cannot be built from its settings."""


class Workflow(ConfigWorkflow):
    """MONAI's workflow with typed and checked overrides and with the merged config available to its parts.

    - Overrides: the texts true, false, null and none are what they mean, at any depth; an id that no file has, or that
      nothing uses, is refused; "#" in a path or name stays one. See :mod:`scripts.overrides`.
    - ``ckpt_dir`` is ``<output_dir>/models`` unless a file or an override sets another.
    - The id ``merged_config`` is the whole config, before anything of it is made.
    - A part that cannot be made of its settings is named with them.

    Args:
        config_file: path, paths with commas between them, or list of paths; or the content of a config itself.
        run_id: what :meth:`run` runs.
        tracking: "mlflow" sets the id ``mlflow``; settings of another tracking are MONAI's.
        kwargs: as in ``monai.bundle.ConfigWorkflow``: its own arguments, and overrides.

    Raises:
        UserError: for everything that the caller can mend.
    """

    def __init__(
        self,
        config_file: str | Sequence[str] | Mapping[str, Any],
        *,
        run_id: str = "run",
        init_id: str = "initialize",
        final_id: str = "finalize",
        tracking: str | dict | None = None,
        workflow_type: str | None = "train",
        meta_file: str | Sequence[str] | None = None,
        logging_file: str | bool | None = None,
        properties_path: str | None = None,
        **override: Any,
    ) -> None:
        files = [] if isinstance(config_file, Mapping) else config_files(config_file)
        config = deepcopy(dict(config_file)) if isinstance(config_file, Mapping) else load_files(files)
        changes = {name: literal(typed(value)) for name, value in override.items()}
        check_names(changes, config, files)
        if tracking == "mlflow" and run_id != "evaluation":  # which is not tracked by ours
            changes, tracking = {"mlflow": True, **changes}, None
        if run_id in ("training", "evaluation") and config.get("ckpt_dir") == SHIPPED_MODELS:
            changes.setdefault("ckpt_dir", MODELS_OF_THE_RUN)
        # MONAI reads a first file for its folder, from which logging and metadata are; the content follows.
        own = [file for file in files[:1] if Path(file).with_name("metadata.json").is_file()]
        super().__init__(
            own[0] if own else str(ROOT / "configs" / "train.json"),
            meta_file=meta_file,
            logging_file=logging_file,
            init_id=init_id,
            run_id=run_id,
            final_id=final_id,
            workflow_type=workflow_type,
            properties_path=properties_path,
        )
        self.parser.set({ConfigParser.meta_key: self.parser.get(ConfigParser.meta_key, {}), **literal(config)})
        for name, value in changes.items():
            try:
                self.parser[name] = value
            except (KeyError, ValueError, IndexError) as error:
                raise UnknownIdError(
                    f"{name} names no part of the config: check the spelling in its middle."
                ) from error
        if tracking is not None:
            self.patch_bundle_tracking(
                self.parser, tracking if isinstance(tracking, dict) else ConfigParser.load_config_files(tracking)
            )
        if run_id not in self.parser:
            raise UserError(f"there is no {run_id} to run in {', '.join(files)}.")
        self._check(run_id, changes, files)
        self._steps_of_its_own(run_id)
        merged = {name: value for name, value in self.parser.get().items() if name != ConfigParser.meta_key}
        if "merged_config" in merged:
            # No dictionary, whose entries the parser would make.
            self.parser["merged_config"] = MappingProxyType(deepcopy({**merged, "merged_config": None}))

    def _check(self, run_id: str, changes: Mapping[str, Any], files: Sequence[str]) -> None:
        config = self.parser.get()
        check_window(config.get("intensity_window"))
        check_numbers(config)
        if run_id == "training":
            check_used(changes, config, (run_id, self.init_id, self.final_id))
        unused = sorted(set(config) - PREFLIGHT_IDS)
        if run_id == "preflight" and "train" not in config and unused:
            raise UnknownIdError(
                f"{', '.join(unused)} would have no effect, since {', '.join(files)} do not have the settings of a "
                "training: put configs/train.json first and configs/preflight.json last."
            )

    def _steps_of_its_own(self, run_id: str) -> None:
        """Removes the entry of the run list that passes control to this class."""
        steps = self.parser[run_id]
        if isinstance(steps, str) and steps.startswith("%"):  # "run": "%evaluation"
            steps = self.parser[steps[1:]]
        if isinstance(steps, list):
            self.parser[run_id] = [step for step in steps if step != TAKE_OVER]

    def initialize(self) -> Any:
        """Checks that the folders of the run can be written, then does what MONAI's method does."""
        result = super().initialize()
        for name in ("output_dir", "ckpt_dir") if self.run_id == "training" else ("output_dir",):
            if name in self.parser:
                check_writable(name, self.parser.get_parsed_content(name))
        return result

    def _run_expr(self, id: str, **kwargs: Any) -> list[Any]:  # noqa: A002  # MONAI's name
        """Like MONAI's, but builds the parts that an entry refers to first, so that an error names the part."""
        result: list[Any] = []
        entries = self.parser[id] if id in self.parser else []
        for entry in [f"{id}::{i}" for i in range(len(entries))] if isinstance(entries, list) else [id]:
            for part in self._needed(entry):
                self._make(part)
            result.append(self.parser.get_parsed_content(entry, **kwargs))
            self.parser.ref_resolver.remove_resolved_content(entry)
        return result

    def _needed(self, entry: str, seen: set[str] | None = None) -> Iterator[str]:
        """The ids that ``entry`` refers to, each after those that it refers to itself."""
        seen = {entry} if seen is None else seen
        for name in self.parser.ref_resolver.find_refs_in_config(self.parser.get(entry), entry):
            if name not in seen:
                seen.add(name)
                yield from self._needed(name, seen)
                yield name

    def _make(self, part: str) -> None:
        try:
            self.parser.get_parsed_content(part)
        except RuntimeError as error:
            cause = error.__cause__
            if not isinstance(cause, (TypeError, ValueError)) or isinstance(cause, UserError):
                raise
            of = ", ".join(f"{name} {value!r}" for name, value in self._settings_of(part))
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            raise SettingError(
                f"{part.replace('::', '#')} cannot be made{f' of {of}' if of else ''}: {kind}"
                f"{summary(cause).rstrip('.')}. DBISL_TRACEBACK=1 shows where."
            ) from error

    def _settings_of(self, part: str) -> Iterator[tuple[str, Any]]:
        """The settings that a part refers to (numbers, texts and lists of them) and their values."""
        resolver = self.parser.ref_resolver
        for name in resolver.find_refs_in_config(self.parser.get(part), part):
            value = resolver.resolved_content.get(name, resolver)
            if _is_plain(value) and not name.startswith(f"{part}::"):
                yield name.replace("::", "#"), value


def _is_plain(value: object) -> bool:
    """Whether ``value`` is a number, a text or a list of them, as people write into a config."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def run_workflow(options: Mapping[str, Any]) -> None:
    """Runs a command with the given options, see :func:`~scripts.overrides.read_command`.

    Args:
        options: arguments of :class:`Workflow`; "verbose" lets MONAI and ignite say all that they say.

    Raises:
        UserError: for everything that the user can mend.
    """
    given = {name: value for name, value in options.items() if value is not None or name not in RUN_ARGUMENTS}
    verbose = given.pop("verbose", False)
    if not verbose:
        quieten()
    if "config_file" not in given:
        raise UserError("say what to run: --config_file configs/train.json, or --args_file with a preset.")
    workflow = Workflow(**given)
    for handler in logging.getLogger().handlers if not verbose else ():
        handler.setFormatter(PlainFormatter())
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def quieten() -> None:
    """Leaves out what says nothing to a user: missing optional readers, config files, each step of an engine."""
    warnings.filterwarnings("ignore", message="NvImgCodec")
    levels = {"ignite": logging.CRITICAL, "monai.data": logging.ERROR}  # errors are printed when they end the process
    levels |= {f"monai.bundle.{module}": logging.WARNING for module in ("scripts", "workflows")}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    # The bar and validation_log.csv have what it says; a higher level would make it warn of its own silence.
    logging.getLogger("monai.handlers.StatsHandler").addFilter(lambda record: record.levelno > logging.INFO)


class PlainFormatter(logging.Formatter):
    """A log for people: the message, behind its level where that is above INFO."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return level + super().format(record)


def take_over(argv: Sequence[str] | None = None) -> None:
    """Runs the command line of ``python -m monai.bundle run`` with :class:`Workflow` and ends the process.

    First in the run lists, for MONAI's own runner makes the plain ConfigWorkflow, which knows neither what came from
    the command line nor what words no option took. Does nothing in any other program: one that drives the bundle
    through MONAI's classes may override what it likes, and keeps its own error handling.

    Args:
        argv: the command line; that of this process by default.
    """
    argv = sys.argv if argv is None else argv
    if Path(argv[0]).parts[-3:] != RUNNER or list(argv[1:2]) != ["run"]:
        return
    print_briefly()
    options = read_command(argv[2:])
    if "workflow_name" in options:
        return
    run_workflow(options)
    raise SystemExit(0)
