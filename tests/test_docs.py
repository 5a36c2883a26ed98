"""Tests of the documentation: links, files, modules, options and config ids that it names exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from functools import cache
from pathlib import Path

import monai.bundle
import pytest
from conftest import ROOT
from doc_pages import (
    PAGES,
    files_shown,
    inline_commands,
    module_commands,
    name_of,
    options_of,
    outside_code,
    shell_blocks,
    text_of,
    words_of,
)
from monai.bundle import ConfigParser

from scripts import command as short_command
from scripts import overrides

INDEX = ROOT / "docs" / "index.md"
# Pages that are written on other branches; empty it once they are here.
COMING: set[str] = set()
# Programs of others that the pages call.
FOREIGN_OPTIONS = {
    *("app", "apps", "studies", "conf", "name", "download", "output"),  # monailabel
    *(
        "backend-store-uri",
        "max-restarts",
        "logdir",
        "cov",
        "cov-report",
        "help",
    ),  # mlflow, tensorboard, pytest, fire
    *("max_iteration", "optimizer#momentm", "objective#wieghts#pseudo"),  # misspellings that training.md shows
}
METHODS = sorted((ROOT / "configs" / "methods").glob("*.json"))


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", outside_code(text_of(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings_that_exist(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(text_of(page))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.is_relative_to(ROOT) and name_of(file) in COMING:
            continue
        if not file.exists() or (anchor and anchor not in slugs(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_index():
    linked = {
        (INDEX.parent / target.partition("#")[0]).resolve() for target in re.findall(r"\]\((\S+?)\)", text_of(INDEX))
    }
    pages = set((ROOT / "docs").rglob("*.md")) - {INDEX}
    assert sorted(map(name_of, pages - linked)) == []


def test_every_method_is_in_the_table_to_choose_from():
    table = text_of(ROOT / "docs" / "tutorials" / "choose_a_method.md")
    assert [path.name for path in METHODS if f"`{path.name}`" not in table] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    named = set(
        re.findall(r"(?<![\w/.<>-])((?:configs|scripts|tools|tests|docs|benchmarks)/[\w/.]+\.\w+)", text_of(page))
    )
    shown = {*files_shown(page), "scripts/networks/mine.py"}  # the reader's own
    pattern = {"configs/methods/<name>.json"}
    assert sorted(n for n in named - shown - pattern if not (ROOT / n).exists() and n not in COMING) == []


@cache
def parser_of(*files: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(ROOT / file) for file in files])
    return parser


def is_id(parser: ConfigParser, key: str) -> bool:
    """Whether a config has the id, or an object that takes its last part as an argument."""
    if key in parser:
        return True
    parent, _, name = key.rpartition("#")
    if not parent or parent not in parser or not isinstance(parser[parent], dict) or "_target_" not in parser[parent]:
        return False
    target = parser[parent]["_target_"]
    module, _, attribute = target.rpartition(".")
    found = getattr(importlib.import_module(module), attribute) if module else None
    for package in ("monai.data", "monai.inferers", "monai.transforms", "monai.handlers", "monai.engines"):
        found = found or getattr(importlib.import_module(package), target, None)
    return name in inspect.signature(found).parameters


@cache
def all_parsers() -> tuple[ConfigParser, ...]:
    """Every config file, with those that it is an overlay of."""
    networks = sorted((ROOT / "configs" / "networks").glob("*.json"))
    train = [("configs/train.json", name_of(path)) for path in [*METHODS, *networks]]
    train += [("configs/train.json", f"configs/{name}.json") for name in ("evaluate", "preflight", "multi_gpu_train")]
    inference = [("configs/inference.json", name_of(path)) for path in (ROOT / "configs" / "runtimes").glob("*.json")]
    return tuple(parser_of(*files) for files in [*train, *inference])


@cache
def arguments_of(module: str) -> frozenset[str]:
    """Arguments of a command of this project: a function behind its options, or a program without any."""
    source = importlib.util.find_spec(module).origin
    calls = [node for node in ast.walk(ast.parse(Path(source).read_text())) if isinstance(node, ast.Call)]
    fires = [call for call in calls if ast.unparse(call.func) in ("fire.Fire", "run_command")]
    names = [call.args[0].id for call in fires if isinstance(call.args[0], ast.Name)]
    main = [getattr(importlib.import_module(module), name) for name in names]
    return frozenset(argument for function in main for argument in inspect.signature(function).parameters)


def words_of_short_command(arguments: list[str]) -> list[str]:
    """What ``python -m scripts`` with these arguments stands for: MONAI's command, or the module of a tool."""
    name, *rest = arguments
    if name in short_command.TOOLS:
        return [short_command.TOOLS[name], *rest]
    given, options = overrides.read_words([word for word in rest if word != "--help"])
    options.pop("run", None)
    given = [word for word in given if not word.endswith(".json") and word != "..."]  # files of the reader's own
    words = shlex.split(short_command.monais_command(short_command.options_of(name, given, options)))
    return words[2:]


def unknown_options(words: list[str]) -> list[str]:
    """The options of a command that its program does not have, and a run id that its configs do not have."""
    module, *arguments = words
    if module == "scripts" and arguments:  # the short command stands for another
        return unknown_options(words_of_short_command(arguments))
    options = options_of(arguments)
    if not module.startswith(("scripts", "tools", "benchmarks", "monai.bundle")):
        return []
    if module != "monai.bundle":
        return sorted(set(options) - arguments_of(module) - {"help"})
    command = getattr(monai.bundle, arguments[0])
    own = set(inspect.signature(command).parameters)
    if arguments[0] == "push_to_hf_hub":
        own |= {"ignore_patterns"}  # of huggingface_hub, to which it is handed over
    if "args_file" in options and (ROOT / options["args_file"]).is_file():
        options = {**json.loads((ROOT / options["args_file"]).read_text()), **options}
        arguments[1:1] = [options.pop("run_id")] if "run_id" in options else []
    files = re.findall(r"[\w/.-]+\.json", str(options.get("config_file", "")))
    # Files that a user makes are not here, and a shell variable may stand for any.
    known = [file for file in files if (ROOT / file).is_file() and "$" not in str(options["config_file"])]
    parsers = [parser_of(*known)] if known else all_parsers()
    tracking = {"experiment_name", "run_name", "tracking_uri"} if "tracking" in options else set()
    ids = set(options) - own - tracking
    if arguments[0] == "run" and len(arguments) > 1 and not arguments[1].startswith("--"):
        ids.add(arguments[1])
    return sorted(key for key in ids if not any(is_id(parser, key) for parser in parsers))


@pytest.mark.parametrize("page", [p for p in PAGES if module_commands(p)], ids=name_of)
def test_commands_name_modules_options_and_ids_that_exist(page):
    wrong = {" ".join(words): unknown for words in module_commands(page) if (unknown := unknown_options(words))}
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_text_exist(page):
    """Outside of whole commands: --name must be a config id or an argument of one of our or MONAI's commands."""
    text = outside_code(text_of(page))
    for command in inline_commands(page):
        text = text.replace(f"`{command}`", "")
    named = {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"(?<!\S)--([\w#-]+)", code)}
    modules = {
        name_of(path)[:-3].replace("/", ".")
        for folder in ("scripts", "tools", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"(fire\.Fire|run_command)\(\w+\)", path.read_text())
    }
    commands = {argument for module in modules for argument in arguments_of(module)}
    for function in ("run", "ckpt_export", "onnx_export", "trt_export", "push_to_hf_hub"):
        commands |= set(inspect.signature(getattr(monai.bundle, function)).parameters)
    commands |= FOREIGN_OPTIONS | {"run", "verbose", "experiment_name", "run_name", "tracking_uri"}
    left = named - commands
    assert sorted(key for key in left if not any(is_id(parser, key) for parser in all_parsers())) == []


def test_wrong_options_ids_and_programs_are_found():
    """The checks above can fail."""
    assert unknown_options(words_of("python -m tools.demo.dataset --output_dir a --num_labelled 4")[0][2:]) == [
        "num_labelled"
    ]
    command = (
        "python -m monai.bundle run train_it --config_file configs/train.json --patchsize 3 --optimizer#momentum 0.9"
    )
    assert unknown_options(words_of(command)[0][2:]) == ["patchsize", "train_it"]
    assert "optimizer#momentun" in unknown_options(words_of(command.replace("momentum", "momentun"))[0][2:])
    with pytest.raises(AttributeError):
        unknown_options(["tools.demo.results_it", "--x", "1"])


@pytest.mark.parametrize("name", ["architecture", "data_flow"])
def test_pictures_are_readable_on_any_background_and_to_a_screen_reader(name):
    from xml.etree import ElementTree

    svg = ElementTree.parse(ROOT / "docs" / "figures" / f"{name}.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    labels = svg.get("aria-labelledby").split()
    assert [svg.find(f"{space}{tag}[@id='{label}']").text for tag, label in zip(("title", "desc"), labels)]
    background = svg.find(f"{space}rect")
    assert background.get("fill") == "#ffffff" and background.get("width") == svg.get("width")
    assert not [block for block in shell_blocks(ROOT / "docs" / "design.md") if block]
