"""Overrides: reads the options of a command and its config files, and gives values their types."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser
from monai.bundle.config_parser import check_key_duplicates
from monai.bundle.utils import merge_kv

from .errors import UserError
from .settings import is_expression, with_texts

WORDS = {"true": True, "false": False, "null": None, "none": None}
FLAG = re.compile(r"--?([a-zA-Z][^=]*)")


def read_words(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line, as Fire does, into words that belong to no option and options by name.

    Raises:
        UserError: when an option is given twice.
    """
    # In a locale without UTF-8 Python reads the bytes of other scripts as surrogates.
    arguments = [os.fsencode(argument).decode("utf-8", "replace") for argument in arguments]
    flags = [match[1].replace("-", "_") for match in map(FLAG.fullmatch, (a.split("=")[0] for a in arguments)) if match]
    twice = [name for name, count in Counter(flags).items() if count > 1]
    if twice:
        raise UserError(f"--{twice[0]} is given {flags.count(twice[0])} times: give it once.")
    read: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    fire.Fire(lambda *words, **options: read.append((words, options)), command=arguments, name="run")
    ((words, options),) = read
    return list(map(str, words)), options


def read_command(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of MONAI's ``run`` by name, which override those of its args_file; the word is the run_id.

    Raises:
        UserError: when a word belongs to no option, or an option is given twice.

    Example:
        >>> read_command(["training", "--lr=0.1", "--train#a", "[1,false]", "--amp"])
        {'lr': 0.1, 'train#a': [1, 'false'], 'amp': True, 'run_id': 'training'}
    """
    words, options = read_words(arguments)
    if "run_id" not in options and words:
        options["run_id"] = words.pop(0)
    if words:
        raise UserError(
            f"the word {words[0]!r} belongs to no option: write a list as one word in quotes, such as "
            """--config_file "['a.json','b.json']" or --spacing "[1,1,3]"."""
        )
    preset = load_file(options.pop("args_file")) if "args_file" in options else {}
    return {**preset, **options}


def typed(value: Any) -> Any:
    """Converts the texts true, false, null and none in ``value``, in upper or lower case and at any depth.

    Fire leaves them texts, and the text "false" counts as true.
    """
    return with_texts(value, lambda text: WORDS.get(text.lower(), text))


def literal(value: Any) -> Any:
    """Protects a "#" in plain texts of ``value``, such as paths or class names; MONAI would replace it by "::"."""

    def protected(text: str) -> str:
        if "#" not in text or is_expression(text):
            return text
        return "$" + repr(text).replace("#", r"\x23").replace("@", r"\x40")

    if isinstance(value, Mapping) and "about" in value:  # for readers
        return {**with_texts(value, protected), "about": value["about"]}
    return with_texts(value, protected)


def config_files(value: str | Sequence[str]) -> list[str]:
    """The paths in ``config_file``: a path, several separated by commas, or a list.

    Raises:
        UserError: when a file is missing, or one that others are overlays of does not stand first.
    """
    if isinstance(value, str) and not Path(value).is_file():
        value = [name.strip(" '\"") for name in value.strip("[]() ").split(",")]
    files = [value] if isinstance(value, str) else list(map(str, value))
    for number, file in enumerate(files):
        if not Path(file).is_file():
            raise UserError(f"the config file {file} does not exist.")
        if number and "imports" in load_file(file):
            raise UserError(f"{file} sets everything that {files[number - 1]} sets: put {file} first in config_file.")
    return files


def load_file(path: str | Path) -> dict[str, Any]:
    """The content of one config file, JSON (in UTF-8 whatever the locale) or YAML.

    Raises:
        UserError: when it cannot be read or is no JSON.
    """
    try:
        if Path(path).suffix.lower() != ".json":
            return ConfigParser.load_config_file(path)
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=check_key_duplicates)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a config: {error}") from error


def load_files(files: Iterable[str]) -> dict[str, Any]:
    """The merged content of config files, by MONAI's rules.

    Raises:
        UserError: when a file sets a part of what no file before it has.
    """
    parser = ConfigParser(config={})
    for file in files:
        for name, value in load_file(file).items():
            try:
                merge_kv(parser, name, value)
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{file} sets {name}, of which the files before it have no part: check their order."
                ) from error
    return parser.get()
