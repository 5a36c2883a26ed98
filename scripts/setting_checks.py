"""Setting checks: reject an override that nothing would use, and a value that its id cannot have."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver
from monai.utils import optional_import

from .errors import UserError
from .settings import IDS, is_expression, with_texts

# Ids that work without a reference to them, and those that only the evaluation of the same settings uses.
ALWAYS_USED = {"about", "bundle_root", "imports", "_meta_", "surface_tolerance"}


class UnknownIdError(UserError):
    """An override names an id that the config files do not have, or one that nothing uses."""


def check_window(window: Any) -> None:
    """Raises UserError unless ``window`` is None, an expression or two ascending numbers; MONAI takes any."""
    if window is None or is_expression(window):
        return
    numbers = isinstance(window, (list, tuple)) and all(type(value) in (int, float) for value in window)
    if not numbers or len(window) != 2 or not window[0] < window[1]:
        raise UserError(
            f'intensity_window is {window!r}; it must be two numbers, the lower first, such as "[-125,275]", or '
            "nothing (None; in a file null)."
        )


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raises UserError for a documented id of numbers that has another value, or another count of them.

    Expressions are left to those who evaluate them.
    """
    for name, (kind, _) in ((name, entry) for section in IDS.values() for name, entry in section.items()):
        form = re.fullmatch(r"(\d )?(integer|number)s?( or null)?", kind)
        value = config.get(name)
        if form is None or name not in config or is_expression(value) or (value is None and form[3]):
            continue
        count, wanted = int(form[1] or 1), (int,) if form[2] == "integer" else (int, float)
        values = value if form[1] and isinstance(value, (list, tuple)) else [value]
        if len(values) != count or not all(type(v) in wanted or is_expression(v) for v in values):
            example = ", ".join(["16" if form[2] == "integer" else "1.0"] * count)
            remedy = f', such as --{name} "[{example}]"' if form[1] else f", such as {example}"
            raise UserError(f"{name} is {value!r}; its type is {kind}{remedy}.")


def check_names(overrides: Mapping[str, Any], config: Mapping[str, Any], files: Sequence[str]) -> None:
    """Raises for an override whose id, or argument of a component, is in no config.

    Files may add ids; MONAI would add a misspelt override, too, and train with the default.

    Args:
        overrides: ids and values.
        config: the merged content of the files.
        files: their names, for the message.

    Raises:
        UnknownIdError: naming the override and the nearest id.
    """
    for name in overrides:
        if (problem := unknown_part(name, config, given=overrides)) is None:
            continue
        part, nearest, arguments = problem
        remedy = f"did you mean {nearest}?" if nearest else f"there are {', '.join(arguments)}." if arguments else ""
        if arguments:
            raise UnknownIdError(f"{part} is no argument of its class: {remedy}")
        raise UnknownIdError(
            f"{part} is no id of {', '.join(map(str, files))}: {remedy or 'the ids are those of the files.'} "
            "A new id can be added by a config file, not by an override."
        )


def check_used(overrides: Iterable[str], config: Mapping[str, Any], run_ids: Iterable[str]) -> None:
    """Raises for an override that the run does not use, such as the weight of a term of another method.

    Args:
        overrides: ids.
        config: merged, with the overrides.
        run_ids: what is run.

    Raises:
        UnknownIdError: naming the override.
    """
    used = used_ids(config, run_ids)
    for name in overrides:
        parts = parts_of(name)
        if parts[0] in ALWAYS_USED or any(parts[: len(other)] == other[: len(parts)] for other in used):
            continue
        raise UnknownIdError(
            f"{name} would have no effect: with these config files nothing refers to it. Leave it out, or choose the "
            "method, network or data that uses it."
        )


def used_ids(config: Mapping[str, Any], run_ids: Iterable[str]) -> list[list[str]]:
    """The ids, split into parts, that ``run_ids`` refer to directly or through others, and ``run_ids`` themselves."""
    parser = ConfigParser(config=dict(config))
    used: list[list[str]] = []
    waiting = [ReferenceResolver.normalize_id(name) for name in run_ids]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        used.append(parts_of(name))
        texts: list[str] = []
        with_texts(parser.get(name), texts.append)
        for text in texts:
            macro = [text[1:]] if text.startswith("%") else []
            for reference in (*ReferenceResolver.match_refs_pattern(text), *macro):
                if reference not in seen:
                    seen.add(reference)
                    waiting.append(reference)
    return used


def unknown_part(
    name: str, config: Mapping[str, Any], *, given: Iterable[str] = ()
) -> tuple[str, str | None, list[str]] | None:
    """The part of the id ``name`` that the config lacks, with the nearest id or None; None if the id is known.

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
    """Splits an id: ``train::dataset#cache_rate`` becomes train, dataset, cache_rate."""
    return re.split("#|::", name.lstrip("+"))


def _known_names(value: Any) -> set[str] | None:
    """The names allowed below a value of the config; None if any is."""
    if _is_group(value):
        return set(value)
    if not isinstance(value, Mapping) or "_target_" not in value:
        return None
    taken = arguments_of(value)
    return None if taken is None else {*taken, *value, *ConfigComponent.non_arg_keys}


def arguments_of(component: Mapping[str, Any]) -> set[str] | None:
    """The argument names of a component's class or function; None if it accepts any."""
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
    """Whether ``value`` maps names to components and is not a component itself."""
    if not isinstance(value, Mapping) or "_target_" in value:
        return False
    return any(isinstance(item, Mapping) and "_target_" in item for item in value.values())
