"""Command line: runs a function as a command, with its options read by their annotations before anything else is done.

An option that is misspelt, given twice or of the wrong form is an error that shows the right spelling, and no word is
left over. Lists, maps and numbers may be written as in Python, or as people write them: ``[left kidney,right kidney]``,
``32 32 32``, ``{255: 1, others: 0}``. Text stays text: a folder may be called 20240501.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.command import function_help
from scripts.data.problems import DataError
from scripts.errors import UserError, print_briefly

OPENING, CLOSING, QUOTES = "[({", "])}", "'\""
NOTHING = ("none", "null")
BOOLEANS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
EXAMPLES = {int: "3", float: "0.5", bool: "true", str: "text"}


class OptionError(DataError):
    """An option of a command is unknown, missing, given twice, or not of the form that it must have."""


def run_command(function: Callable[..., Any], argv: Sequence[str] | None = None) -> Any:
    """Calls ``function`` with the options of the command line; prints what it returns, if anything.

    Args:
        function: every parameter of it is an option ``--name``; those without a default must be given. The annotations
            may be made of str, int, float, bool, Sequence, list, Mapping, dict, None and unions of them.
        argv: the options; those of this process by default.

    Returns:
        What ``function`` returns.

    Raises:
        OptionError: naming the option, its value, and the form or spelling that is expected.
    """
    from scripts.workflow import quieten

    print_briefly()
    quieten()
    result = function(**options_of(function, sys.argv[1:] if argv is None else argv))
    if result is not None:
        print(result)
    return result


def options_of(function: Callable[..., Any], argv: Sequence[str]) -> dict[str, Any]:
    """The arguments for ``function`` that a command line gives; see :func:`run_command`."""
    if {"--help", "-h"} & set(argv):
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(function)))
        spec = vars(sys.modules[function.__module__])["__spec__"]
        print(function_help(f"python -m {spec.name}", tree.body[0]))
        raise SystemExit(0)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    parser = _Parser(allow_abbrev=False, add_help=False)
    for name, parameter in parameters.items():
        kinds = _members(hints.get(name, str))
        several = any(_is_container(kind) for kind in kinds)
        parser.add_argument(
            f"--{name}",
            action=_Once,
            required=parameter.default is parameter.empty,
            default=argparse.SUPPRESS,
            nargs="+" if several else "?" if bool in kinds else None,
            const="true" if bool in kinds and not several else None,
        )
    # --output-dir is --output_dir; the values stay as they are.
    words = [re.sub(r"^--[\w-]+", lambda m: "--" + m[0][2:].replace("-", "_"), word) for word in argv]
    given, left_over = parser.parse_known_args(words)
    if left_over:
        parser.refuse(left_over, list(parameters))
    return {name: _parsed_words(name, words, hints.get(name, str)) for name, words in vars(given).items()}


def parsed(text: str, kind: Any, *, name: str = "value") -> Any:
    """``text`` as ``kind``.

    Args:
        text: as it was typed.
        kind: a type, or a union of them, see :func:`run_command`.
        name: of the option, for the message.

    Raises:
        OptionError: when it is none of them.

    Example:
        >>> parsed("[left kidney,right kidney]", list[str]), parsed("1 1 3", list[float]), parsed("2:1", dict[int, int])
        (['left kidney', 'right kidney'], [1.0, 1.0, 3.0], {2: 1})
    """
    kinds = _members(kind)
    if type(None) in kinds and text.strip().lower() in NOTHING:
        return None
    # Brackets are those of a list or map, and what none of the others can be is text.
    bracketed = text.strip()[:1] in tuple(OPENING)
    for one in sorted(kinds, key=lambda one: (_is_text(one), not (_is_container(one) and bracketed))):
        if str in kinds and _is_sequence(one) and not bracketed:
            continue
        try:
            return _as(text, one)
        except ValueError:
            continue
    raise OptionError(f"--{name} is {text!r}; it must be {_form(kinds)}.")


def _parsed_words(name: str, words: str | Sequence[str], kind: Any) -> Any:
    """The value of an option from its words, of which lists may have several."""
    if isinstance(words, str):
        return parsed(words, kind, name=name)
    if len(words) == 1:
        return parsed(words[0], kind, name=name)
    sequence = next((one for one in _members(kind) if _is_sequence(one)), None)
    if sequence is None or any("," in word or word[:1] in tuple(OPENING) for word in words):
        return parsed(" ".join(words), kind, name=name)  # a list or map that the shell has taken apart
    (item,) = typing.get_args(sequence)
    return [parsed(word, item, name=name) for word in words]


def _as(text: str, kind: Any) -> Any:
    """``text`` as one type that is no union; ValueError if it is not."""
    text = text if kind is str else text.strip()
    if _is_sequence(kind):
        (item,) = typing.get_args(kind)[:1] or (str,)
        inner = _inside(text, "[(")
        numbers = not any(_is_text(one) or _is_container(one) for one in _members(item))
        parts = _split(inner)
        if numbers and len(parts) == 1:
            parts = inner.split()
        return [_item(part, item) for part in parts]
    if _is_mapping(kind):
        key, value = typing.get_args(kind)
        pairs = [re.match(r"""\s*(["']?)(.+?)\1\s*[:=](.+)$""", part, re.DOTALL) for part in _split(_inside(text, "{"))]
        if not all(pairs):
            raise UserError(text)
        return {_item(pair[2], key): _item(pair[3], value) for pair in pairs if pair}
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise UserError(text)
        return BOOLEANS[text.lower()]
    if kind in (int, float):
        return kind(text)
    if kind is type(None):
        raise UserError(text)
    return text


def _item(text: str, kind: Any) -> Any:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES:
        text = text[1:-1]
    try:
        return parsed(text, kind)
    except OptionError as error:
        raise UserError(text) from error


def _inside(text: str, brackets: str) -> str:
    """``text`` without the brackets around it, where it has some."""
    if text[:1] and text[0] in brackets:
        if text[-1] != CLOSING[OPENING.index(text[0])]:
            raise UserError(text)
        return text[1:-1]
    return text


def _split(text: str) -> list[str]:
    """The parts of ``text`` between commas that stand in no brackets and quotes; none of an empty text."""
    parts, depth, quote = [""], 0, ""
    for n, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES and not parts[-1].strip() and text.find(character, n + 1) > 0:
            quote = character
        else:
            depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if not parts[-1].strip():  # of nothing, or behind the last comma
        parts.pop()
    return parts


def _members(kind: Any) -> list[Any]:
    return list(typing.get_args(kind)) if typing.get_origin(kind) in (types.UnionType, typing.Union) else [kind]


def _is_sequence(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_container(kind: Any) -> bool:
    return _is_sequence(kind) or _is_mapping(kind)


def _is_text(kind: Any) -> bool:
    return kind is str or kind is Any


def _form(kinds: Sequence[Any]) -> str:
    """What a value must be, in words."""
    words = []
    for kind in kinds:
        if _is_sequence(kind):
            (item,) = typing.get_args(kind)[:1] or (str,)
            first = _members(item)[0]
            example = "[a,b]" if _is_text(first) else "[[1,2],[2]]" if _is_container(first) else "[1,1,3]"
            words.append(f'a list such as "{example}"')
        elif _is_mapping(kind):
            values = _members(typing.get_args(kind)[1])[0]
            words.append('a map such as "{a: [0,3]}"' if _is_container(values) else 'a map such as "{255: 1}"')
        elif kind in EXAMPLES:
            what = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
            words.append(what)
    return " or ".join(words)


class _Once(argparse.Action):
    """Keeps a value, and refuses a second one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if hasattr(namespace, self.dest):
            raise OptionError(f"{option_string} is given twice: give it once.")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise OptionError(f"{message}. --help lists all options.")

    def refuse(self, words: Sequence[str], names: Sequence[str]) -> typing.NoReturn:
        """Raises for the first word that no option takes."""
        name = words[0].partition("=")[0].lstrip("-")
        if not words[0].startswith("--"):
            raise OptionError(
                f"no option takes the word {words[0]!r}: put what belongs together in quotes. --help lists all options."
            )
        nearest = difflib.get_close_matches(name, names, n=1)
        remedy = f"did you mean --{nearest[0]}?" if nearest else f"there are {', '.join('--' + n for n in names)}."
        raise OptionError(f"--{name} is no option of this command: {remedy}")
