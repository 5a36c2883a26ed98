"""Command: translates ``python -m scripts train left_atrium dtc`` into MONAI's command, runs it, and prints help.

Nothing heavy is imported before it is known that there is something to run, so that help comes at once.
"""

import ast
import difflib
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from .errors import UserError, print_briefly
from .settings import IDS, is_expression

ROOT = Path(__file__).resolve().parents[1]
# Commands over the configs: run id, first and last config file, overlays in the order in which they are applied.
TRAINING_OVERLAYS = ("data", "budgets", "augmentations", "methods", "networks", "ablations", "tracking")
CONFIGS = {
    "train": ("training", "train", None, TRAINING_OVERLAYS),
    "evaluate": ("evaluation", "train", "evaluate", TRAINING_OVERLAYS),
    "infer": ("inference", "inference", None, ("runtimes",)),
    "preflight": ("preflight", "train", "preflight", TRAINING_OVERLAYS),
}
# Commands that are modules of their own; those of tools/ are not in the zip of the bundle.
TOOLS = {
    "prepare": "tools.preparation.dataset",
    "plan": "tools.preparation.plan",
    "compare": "tools.comparison.run",
    "report": "tools.reports.run",
    "rank": "tools.active.rank",
    "propose": "tools.active.propose",
    "accept": "tools.active.accept",
    "track": "scripts.tracking",
}
HELP = """python -m scripts COMMAND ...      (python -m scripts COMMAND --help says more)

  train      trains:    python -m scripts train left_atrium dtc --dataset_dir DIR --max_iterations 6000
  evaluate   evaluates: python -m scripts evaluate --run outputs
  infer      segments:  python -m scripts infer --run outputs --input_dir DIR
  preflight  checks the data and this machine, as a training does before it starts
  prepare    makes a data set of folders of images and labels
  plan       chooses the settings for a data set
  compare    trains and evaluates many runs, and tests their differences
  report     writes the page of a run: python -m scripts report --run outputs
  rank       orders the unlabeled cases by which to label next
  propose    writes masks of the first of them, to correct
  accept     makes a data set with the corrected masks as labels
  track      sends a run to MLflow, or what MLflow missed of it: python -m scripts track --run outputs
"""
RUN_HELP = {
    "train": "Options are settings (below), such as --max_iterations 6000 or --optimizer#momentum 0.95. "
    "--args_file FILE takes the config files and settings of a preset.",
    "evaluate": "--run DIR evaluates the training in DIR by its settings; without it, repeat overlays and options.",
    "infer": "--run DIR uses the weights and settings of the training in DIR, otherwise those of the bundle.",
    "preflight": "--run DIR checks the data of the training in DIR again.",
}
# Types of settings that are parts of the config, which the help leaves to docs/reference.md.
PARTS = ("object", "map", "map or null", "list", "expression")
# What the help calls the values of a tool's options.
KINDS = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "bool": "true|false"}
KINDS |= {"Sequence": "LIST", "list": "LIST", "Mapping": "MAP", "dict": "MAP"}
FOLDERS = ("dataset_dir", "output_dir", "ckpt_dir", "input_dir")


def main(arguments: Sequence[str]) -> None:
    """Runs a command line; a user's error ends the process with one line."""
    print_briefly()
    name, *rest = arguments or ["--help"]
    wants_help = any(word in ("--help", "-h") for word in rest)
    if name in ("--help", "-h", "help"):
        print(HELP)
    elif name in CONFIGS and wants_help:
        print(help_text(name))
    elif name in CONFIGS:
        run_config(name, rest)
    elif name in TOOLS:
        run_tool(name, rest, wants_help=wants_help)
    else:
        raise UserError(
            f"there is no command {name}: {', '.join((*CONFIGS, *TOOLS))}.{_nearest(name, (*CONFIGS, *TOOLS))}"
        )


def run_config(name: str, arguments: Sequence[str]) -> None:
    """Prints the equivalent command of MONAI's runner and runs it."""
    from .overrides import read_command, read_words
    from .workflow import run_workflow

    words, options = read_words(arguments)
    if "args_file" in options:
        options = {**read_command(arguments), "run_id": CONFIGS[name][0]}
    else:
        options = options_of(name, words, options)
    same = monais_command(options)
    print(f"same as: {same}", flush=True)
    sys.argv = ["monai.bundle", *shlex.split(same)[3:]]  # what run.json records
    run_workflow(options)
    written = {"train": ("weights, logs and run.html", "evaluate"), "evaluate": ("metrics.csv and masks", "report")}
    if name in written:
        what, following = written[name]
        folder = options.get("output_dir", ROOT / "outputs")
        print(f"\n{what} are in {folder}. Next: {program()} {following} --run {shlex.quote(str(folder))}")


def program() -> str:
    """How this command is called from the folder in which the user is."""
    return "python -m scripts" if Path.cwd() == ROOT else f"python {shlex.quote(str(ROOT / 'scripts'))}"


def options_of(name: str, words: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a command, its words (overlays by name or path) and its options to arguments of MONAI's ``run``.

    Raises:
        UserError: when an overlay or the folder of ``--run`` does not exist.
    """
    run_id, first, last, folders = CONFIGS[name]
    given = dict(options)
    run = given.pop("run", None)
    if name == "preflight" and run is None and not words and not set(given) - {*FOLDERS, "bundle_root"}:
        first, last = "preflight", None  # without settings only what needs none is checked
    files = [_config(first)]
    if run is not None and name == "infer":
        models = Path(str(run)) / "models"
        files.append(str(_found(models / "model.json", run)))
        given = {"ckpt_path": str(models / "model.pt"), "output_dir": str(Path(str(run)) / "masks"), **given}
    elif run is not None:
        files = [str(_found(Path(str(run)) / "config.json", run))]
        given = {"output_dir": str(run), **given}
    files += overlays(words, folders)
    if last:
        files.append(_config(last))
    for folder in FOLDERS:
        if isinstance(given.get(folder), (str, int)) and not is_expression(given[folder]):
            given[folder] = os.path.abspath(str(given[folder]))
    if Path.cwd() != ROOT:
        given.setdefault("bundle_root", str(ROOT))
    return {"run_id": run_id, "config_file": files, **given}


def overlays(words: Iterable[str], folders: Sequence[str]) -> list[str]:
    """Finds the files of overlays given by name (``dtc``) or path, in the order of application; paths last.

    Raises:
        UserError: naming the nearest overlay.
    """
    known = {path.stem: path for folder in folders for path in sorted((ROOT / "configs" / folder).glob("*.json"))}
    named, paths = [], []
    for word in words:
        if word in known:
            named.append(known[word])
        elif Path(word).is_file():
            paths.append(word)
        else:
            raise UserError(
                f"there is no overlay {word}, and no such file: --help lists the overlays.{_nearest(word, known)} "
                'A list of numbers is one word in quotes, such as "[1,1,3]".'
            )
    named.sort(key=lambda path: folders.index(path.parent.name))
    return [_config(path.relative_to(ROOT / "configs").with_suffix("").as_posix()) for path in named] + paths


def monais_command(options: Mapping[str, Any]) -> str:
    """The command line of MONAI's runner that does the same."""
    text = f"python -m monai.bundle run {options['run_id']}"
    for name, value in options.items():
        if name != "run_id":
            listed = isinstance(value, (list, dict))
            text += f" --{name} " + (f'"{value}"' if listed else shlex.quote(str(value)))
    return text


def help_text(name: str) -> str:
    """Help of a command over the configs: overlays with their purpose, settings with type and meaning."""
    run_id, first, last, folders = CONFIGS[name]
    lines = [f"python -m scripts {name} [OVERLAY ...] [--SETTING VALUE ...]", "", RUN_HELP[name]]
    for folder in folders:
        lines += ["", f"{folder}:"]
        for path in sorted((ROOT / "configs" / folder).glob("*.json")):
            about = json.loads(path.read_text(encoding="utf-8")).get("about", "")
            lines.append(f"  {path.stem:<32} {shorten(about.split('. ')[0].rstrip('.'), 100, placeholder=' ...')}")
    config: dict[str, Any] = {}
    for file in filter(None, (first, last)):
        config |= json.loads((ROOT / "configs" / f"{file}.json").read_text(encoding="utf-8"))
    for section, ids in IDS.items():
        shown = {key: entry for key, entry in ids.items() if key in config and entry[0] not in PARTS}
        if shown:
            lines += ["", f"{section}:"]
        for key, (kind, meaning) in shown.items():
            default = config[key] if isinstance(config[key], str) else json.dumps(config[key])
            lines.append(f"  --{key:<24} {plain(meaning)} ({kind}; default {default})")
    return "\n".join(lines)


def plain(text: str) -> str:
    """Removes links and marks from a text in Markdown or of a docstring."""
    return re.sub(r" ?\(\[[^\]]*\]\([^)]*\)\)|(:\w+:)?`", "", text)


def function_help(program: str, function: ast.FunctionDef) -> str:
    """Help of a command that is a function: what it does, and a line for each option, by signature and docstring."""
    described, *sections = re.split(
        r"^(?=(?:Args|Returns|Raises):$)", plain(ast.get_docstring(function) or ""), flags=re.M
    )
    listed = next((section for section in sections if section.startswith("Args:")), "")
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", listed, flags=re.M | re.S)
    meanings = {name: " ".join(meaning.split()) for name, meaning in entries}
    given, usage, lines = function.args, program, []
    defaults = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    for argument, default in zip([*given.args, *given.kwonlyargs], defaults):
        types = re.sub(r"\[.*\]", "", ast.unparse(argument.annotation or ast.Name("str"))).split(" | ")
        kind = "|".join(dict.fromkeys(KINDS[name] for name in types if name in KINDS))
        option = f"--{argument.arg} {kind or 'VALUE'}".replace("INTEGER|NUMBER", "NUMBER")
        value = (
            str(default.value) if isinstance(default, ast.Constant) else ast.unparse(default or ast.Name("required"))
        )
        value = value.lower() if value in ("True", "False") else value
        note = {"required": "required", "None": "optional"}.get(value, f"default: {value}")
        usage += f" {option}" if default is None else ""
        lines.append(f"  {option:<28} {meanings.get(argument.arg, '').removesuffix('.')} ({note})")
    return "\n".join([described.strip(), "", f"{usage} [--OPTION VALUE ...]", "", *lines])


def run_tool(name: str, arguments: Sequence[str], *, wants_help: bool) -> None:
    """Runs a command of tools/ as a module; reads its help from the source.

    Raises:
        UserError: when this copy of the bundle has no tools/.
    """
    module = TOOLS[name]
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.is_file():
        raise UserError(
            f"{name} is a command of tools/, which this copy of the bundle does not have: get the repository."
        )
    if wants_help:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = re.findall(r"(?:fire.Fire|run_command)\((\w+)\)", path.read_text(encoding="utf-8"))[0]
        (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == called]
        print(function_help(f"python -m scripts {name}", function))
        return
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"python -m scripts {name}", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _config(name: str) -> str:
    """The path of a config of the bundle: relative if the command is called from the bundle's folder."""
    path = ROOT / "configs" / f"{name}.json"
    return path.relative_to(ROOT).as_posix() if Path.cwd() == ROOT else str(path)


def _found(path: Path, run: Any) -> Path:
    if not path.is_file():
        raise UserError(f"{run} holds no finished training: {path} does not exist.")
    return path


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
