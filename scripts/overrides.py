"""Overrides: refuses settings that MONAI would take without a word: of ids that no config has, of values cut short."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigComponent, ConfigParser
from monai.utils import optional_import

from .errors import print_briefly

RUNNER = ("monai", "bundle", "__main__.py")
# What the runner takes beside overrides: its own arguments, and those that it passes on to the workflow.
ARGUMENTS = {*inspect.signature(monai.bundle.run).parameters, "workflow_name", "workflow_type", "properties_path"}
# What preflight.json has by itself; the metadata comes from MONAI.
PREFLIGHT_IDS = {"about", "bundle_root", "dataset_dir", "output_dir", "preflight_checks", "preflight", "run", "_meta_"}
FLAG = re.compile(r"--|-[a-zA-Z]")


class WindowError(ValueError):
    """An intensity_window that is not two numbers, of which MONAI would take the first two or turn the image round."""


class UnknownIdError(ValueError):
    """An override names an id that the config files do not have."""


def check_overrides(argv: Sequence[str] | None = None) -> None:
    """Ends ``python -m monai.bundle run`` when an override, or an entry of its args_file, names an unknown id.

    It stands before everything else in the run lists, so that ``intensity_window`` is checked here, too.

    Does nothing in any other program: one that drives the bundle through MONAI's classes may add what it likes. Config
    files may add ids, too; only overrides are checked, since MONAI adds a misspelt one and trains with the default.

    Args:
        argv: the command line; that of this process by default.

    Raises:
        UnknownIdError: naming the override and the nearest id.
        WindowError: when ``intensity_window``, of an override or a file, is not two numbers in ascending order.
    """
    command = _command(sys.argv if argv is None else argv)
    if command is None:
        return
    files, config, given, values = command
    for name, place in given.items():
        if name in ARGUMENTS:
            continue
        problem = unknown_part(name, config, given=given)
        if problem:
            print_briefly()
            part, nearest, arguments = problem
            if arguments:
                remedy = f"did you mean {nearest}?" if nearest else f"there are {', '.join(arguments)}."
                raise UnknownIdError(f"{part} in {place} is no argument of its class: {remedy}")
            remedy = f"did you mean {nearest}?" if nearest else "the ids are those of the files."
            raise UnknownIdError(
                f"{part} in {place} is no id of {', '.join(map(str, files))}: {remedy} "
                "A new id can be added by a config file, not by an override."
            )
    check_window({**config, **values}.get("intensity_window"))


def check_window(window: Any) -> None:
    """Raises WindowError unless ``window`` is two numbers in ascending order, None, or an expression."""
    if window is None or (isinstance(window, str) and window.startswith(("$", "@", "%"))):
        return
    numbers = isinstance(window, (list, tuple)) and all(type(value) in (int, float) for value in window)
    if not numbers or len(window) != 2 or not window[0] < window[1]:
        print_briefly()
        raise WindowError(
            f'intensity_window is {window!r}; it must be two numbers, the lower first, such as "[-125,275]", or '
            "nothing (None; in a file null)."
        )


def check_preflight_settings(argv: Sequence[str] | None = None) -> None:
    """Ends a preflight without train.json when a config file sets what it does not look at, such as a data overlay.

    Args:
        argv: the command line; that of this process by default.

    Raises:
        UnknownIdError: naming the ids and the remedy.
    """
    command = _command(sys.argv if argv is None else argv)
    if command is None or "train" in command[1]:
        return
    files, config, *_ = command
    unused = sorted(set(config) - PREFLIGHT_IDS)
    if unused:
        print_briefly()
        raise UnknownIdError(
            f"{', '.join(unused)} would have no effect, since {', '.join(map(str, files))} do not have the settings of "
            "a training: put configs/train.json first and configs/preflight.json last in --config_file."
        )


def _command(argv: Sequence[str]) -> tuple[list[str], dict[str, Any], dict[str, str], dict[str, Any]] | None:
    """Config files, their merged content, and of each override place and value; None for any other program."""
    if Path(argv[0]).parts[-3:] != RUNNER or argv[1:2] != ["run"]:
        return None
    given = dict.fromkeys(flags := flag_values(argv[2:]), "the command line")
    arguments = {}
    if args_file := flags.get("args_file"):
        arguments = ConfigParser.load_config_file(args_file)
        given = {**dict.fromkeys(arguments, args_file), **given}
    files = DefaultParseValue(flags["config_file"]) if "config_file" in flags else arguments.get("config_file")
    files = [files] if isinstance(files, str) else list(files or ())
    parser = ConfigParser()
    parser.read_config(files)
    tracking = flags.get("tracking", arguments.get("tracking"))
    values = {**arguments, **{name: DefaultParseValue(value) for name, value in flags.items()}}
    return files, {**parser.get(), **_tracking_ids(tracking)}, given, values


def flag_values(arguments: Sequence[str]) -> dict[str, str]:
    """The flags of a command line and their values as text, by the rules of Fire, which the runner uses.

    Example:
        >>> flag_values(["training", "--lr=0.1", "--train#a", "[1, 2]", "--amp", "--nocache"])
        {'lr': '0.1', 'train#a': '[1, 2]', 'amp': 'True', 'cache': 'False'}
    """
    values: dict[str, str] = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--":  # what follows is for Fire itself
            break
        if not FLAG.match(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not equals and (position == len(arguments) or FLAG.match(arguments[position])):
            negated = name.startswith("no") and name not in ARGUMENTS
            name, value = (name[2:], "False") if negated else (name, "True")
        elif not equals:
            value = arguments[position]
            position += 1
        values[name] = value
    return values


def unknown_part(
    name: str, config: Mapping[str, Any], *, given: Iterable[str] = ()
) -> tuple[str, str | None, list[str]] | None:
    """What of the id ``name`` the config does not have, with the nearest id or None; None where it is known.

    If it is an argument of a component, the arguments that there are follow, else an empty list.

    Closed are the top level, the groups of components ("train" and "validate"), and the arguments of a component whose
    class or function lists them. What else is nested is left to those who take it.

    Args:
        name: the id, its parts separated by "#" or "::".
        config: the merged content of the files.
        given: all overrides; what another of them replaces, or makes another class, is not checked.
    """
    parts = parts_of(name)
    others = [parts_of(other) for other in given]
    level: Any = config
    for depth, part in enumerate(parts):
        known = _known_names(level) if depth else set(config)
        if known is not None and part not in known:
            nearest = difflib.get_close_matches(part, known, n=1)
            path = "#".join(parts[:depth] + [""])
            arguments = sorted(known - ConfigComponent.non_arg_keys) if "_target_" in level else []
            return path + part, path + nearest[0] if nearest else None, arguments
        above = parts[: depth + 1]
        if not isinstance(level, Mapping) or part not in level or [*above, "_target_"] in others:
            return None
        if above != parts and above in others:
            return None
        level = level[part]
    return None


def parts_of(name: str) -> list[str]:
    """The parts of an id: ``train::dataset#cache_rate`` is train, dataset, cache_rate."""
    return re.split("#|::", name.lstrip("+"))


def _known_names(value: Any) -> set[str] | None:
    """The names that may stand below a value of the config; None where any may."""
    if _is_group(value):
        return set(value)
    if not isinstance(value, Mapping) or "_target_" not in value:
        return None
    taken = arguments_of(value)
    return None if taken is None else {*taken, *value, *ConfigComponent.non_arg_keys}


def arguments_of(component: Mapping[str, Any]) -> set[str] | None:
    """The names of the arguments that the class or function of a component takes; None where it takes any."""
    module, found = "", False
    with contextlib.suppress(Exception):  # an expression, or a class that is not there, is found out when it is made
        module, _, name = ConfigComponent(dict(component)).resolve_module_name().rpartition(".")
        target, found = optional_import(module, name=name)
    if not found:
        return None
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some of those written in C do not say
        return None
    return None if any(p.kind == p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def _is_group(value: Any) -> bool:
    """Whether ``value`` holds components by their names and is none itself."""
    if not isinstance(value, Mapping) or "_target_" in value:
        return False
    return any(isinstance(item, Mapping) and "_target_" in item for item in value.values())


def _tracking_ids(tracking: str | None) -> dict[str, Any]:
    """Ids that MONAI adds for experiment tracking, and its metadata."""
    if tracking is None:
        return {"_meta_": {}}
    known: dict[str, Any] = monai.bundle.utils.DEFAULT_EXP_MGMT_SETTINGS
    settings = known[tracking] if tracking in known else ConfigParser.load_config_files(tracking)
    return {"_meta_": {}, **settings.get("configs", {})}
