"""Helpers of the documentation's tests: pages, and the commands and files that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A command ends here, or the next one begins.
OPERATORS = {";", "&&", "||", "|", "do", "done;", "done"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def outside_code(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def shell_blocks(page: Path) -> list[str]:
    """The fenced blocks of commands: those marked ``sh``, and unmarked ones such as the model card's."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [content for language, content in blocks if language in ("sh", "")]


def inline_commands(page: Path) -> list[str]:
    """Whole commands between backticks."""
    return re.findall(r"`(python -m [^`]+)`", outside_code(text_of(page)))


def words_of(block: str) -> list[list[str]]:
    """The commands of a block as lists of words, continued lines joined."""
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        words: list[str] = []
        # shlex takes the # within an id for a comment, too.
        for word in [*shlex.split(re.sub(r"(^|\s)#.*", "", line)), ";"]:
            if word in OPERATORS:
                commands.append(words)
                words = []
            elif word.endswith(";"):
                commands.append([*words, word[:-1]])
                words = []
            else:
                words.append(word)
    return [words for words in commands if words]


def module_commands(page: Path, *, inline: bool = True) -> list[list[str]]:
    """What follows ``python -m`` in the page's commands: the module and its arguments."""
    found = []
    for block in [*shell_blocks(page), *(inline_commands(page) if inline else [])]:
        for words in words_of(block):
            if "-m" in words and words[words.index("-m") - 1].endswith("python"):
                found.append(words[words.index("-m") + 1 :])
    return found


def options_of(words: list[str]) -> dict[str, str]:
    """The options of a command: ``--name value``, ``--name=value``, or "" for one without a value."""
    options = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else ""
            options[name] = value if equals else following
    return options


def files_shown(page: Path) -> dict[str, str]:
    """Content of the files that a page shows in full, by their path: the path in backticks, then the block."""
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", text_of(page), flags=re.DOTALL | re.MULTILINE))
