"""Tests of the short command (scripts/__main__.py, scripts/command.py): what it stands for, its help, and its runs."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, blob, las, run_process, save

from scripts import command
from scripts.command import CONFIGS, TOOLS, help_text, monais_command, options_of, overlays
from scripts.errors import UserError
from scripts.overrides import read_command

SETTINGS = [f"--{name}={value}" for name, value in SMALL.items()]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def call(*arguments: str, cwd: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run_process([sys.executable, str(root / "scripts"), *arguments], cwd=cwd)


# --- what it stands for ---


def test_overlays_are_applied_in_the_order_of_their_folders_and_paths_last(tmp_path):
    own = tmp_path / "it's mine.json"
    own.write_text("{}")
    found = overlays(["dtc", str(own), "left_atrium", "dynunet", "left_atrium_cpu", "cpu"], CONFIGS["train"][3])
    names = ["data/left_atrium", "data/left_atrium_cpu", "budgets/cpu", "methods/dtc", "networks/dynunet"]
    assert found == [*(f"configs/{name}.json" for name in names), str(own)]


def test_names_of_overlays_are_unambiguous():
    for _, _, _, folders in CONFIGS.values():
        names = [path.stem for folder in folders for path in (ROOT / "configs" / folder).glob("*.json")]
        assert len(names) == len(set(names)) and names


@pytest.mark.parametrize("word, near", [("dct", "dtc"), ("suppervised", "supervised")])
def test_unknown_overlay_and_command_name_the_nearest(word, near):
    with pytest.raises(UserError, match=f"{word}.*Did you mean {near}"):
        overlays([word], CONFIGS["train"][3])
    with pytest.raises(UserError, match="trian.*Did you mean train"):
        command.main(["trian"])


def test_printed_command_of_monai_means_the_same(tmp_path):
    options = options_of("train", ["dtc", "left_atrium"], {"dataset_dir": "data/x", "spacing": [1, 1, 3], "seed": 4})
    program, *words = _words(monais_command(options))
    assert program == "python" and words[:4] == ["-m", "monai.bundle", "run", "training"]
    assert read_command(words[3:]) == {**options, "run_id": "training"}
    assert options["dataset_dir"] == str(ROOT / "data" / "x")


def _words(text: str) -> list[str]:
    import shlex

    return shlex.split(text)


def test_run_that_is_no_training_is_refused(tmp_path):
    for name in ("evaluate", "infer", "preflight"):
        with pytest.raises(UserError, match=f"{tmp_path} holds no finished training"):
            options_of(name, [], {"run": str(tmp_path)})


def test_preflight_without_settings_checks_what_needs_none(tmp_path):
    alone = options_of("preflight", [], {"dataset_dir": str(tmp_path)})
    assert alone["config_file"] == ["configs/preflight.json"]
    assert options_of("preflight", ["dtc"], {})["config_file"][0] == "configs/train.json"
    assert options_of("preflight", [], {"num_labeled": 3})["config_file"][0] == "configs/train.json"


# --- help ---


@pytest.mark.parametrize("name", CONFIGS)
def test_help_lists_overlays_and_settings_without_heavy_imports(name):
    text = help_text(name)
    for folder in CONFIGS[name][3]:
        for path in (ROOT / "configs" / folder).glob("*.json"):
            assert re.search(rf"^  {path.stem} ", text, flags=re.MULTILINE)
    assert "--output_dir " in text and "](" not in text
    code = f"import sys; sys.argv[1:] = ['{name}', '--help']\nfrom scripts.command import main\nmain(sys.argv[1:])\n"
    finished = run_process([sys.executable, "-c", code + "assert not {'torch', 'monai', 'fire'} & set(sys.modules)"])
    assert finished.returncode == 0 and finished.stdout.strip() == text.strip()


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool_has_a_line_for_each_option_and_no_marks(name, capsys):
    command.main([name, "--help"])
    text = capsys.readouterr().out
    module = importlib.import_module(TOOLS[name])
    (called,) = re.findall(r"(?:fire.Fire|run_command)\((\w+)\)", Path(module.__file__).read_text())
    usage = next(line for line in text.splitlines() if line.startswith(f"python -m scripts {name} "))
    for option, parameter in inspect.signature(getattr(module, called)).parameters.items():
        (line,) = re.findall(rf"^  --{option} .+\)$", text, flags=re.M)
        required = parameter.default is parameter.empty
        assert ("(required)" in line) == required == (f"--{option} " in usage)
        if not required and parameter.default is not None:
            assert line.lower().endswith(f"(default: {parameter.default})".lower())
    assert not re.search(r"`|:\w+:|^(Args|Raises|Returns):|tools\.\w+", text, flags=re.M)


def test_zip_without_tools_says_so(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    finished = call("prepare", "--image_dir", "x", cwd=tmp_path, root=tmp_path)
    assert finished.returncode == 1 and "error: prepare is a command of tools/" in finished.stderr


# --- runs ---


def test_train_evaluate_infer_and_report_from_another_folder_with_an_own_package_scripts(tiny, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("raise RuntimeError('another package')")
    save(blob((20, 20, 20), seed=3)[0], las((1, 1, 1)), tmp_path / "new" / "case.nii.gz")
    trained = call("train", "supervised", "--dataset_dir", str(tiny), "--output_dir", "run", *SETTINGS, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "same as: python -m monai.bundle run training" in trained.stdout and "nvImageCodec" not in trained.stderr
    shutil.move(tmp_path / "run", tmp_path / "moved")
    for arguments in (
        ["evaluate", "--run", "moved"],
        ["infer", "--run", "moved", "--input_dir", "new"],
        ["report", "--run", "moved"],
    ):
        finished = call(*arguments, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    written = {path.relative_to(tmp_path / "moved").as_posix() for path in (tmp_path / "moved").rglob("*")}
    assert {
        "config.json",
        "models/model.pt",
        "metrics.csv",
        "masks/case_seg.nii.gz",
        "run.html",
        "README.txt",
    } <= written
    explained = (tmp_path / "moved" / "README.txt").read_text(encoding="utf-8")
    for name in (path for path in written if "/" not in path and not path.startswith(".")):
        assert name == "README.txt" or name in explained or name.endswith("_seg.nii.gz"), name
    page = (tmp_path / "moved" / "run.html").read_text(encoding="utf-8")
    assert page.index("<h2>Evaluation</h2>") < page.index("<h2>Curves</h2>")
    assert not (tmp_path / "run").exists()


def test_error_of_the_user_is_one_line_and_a_misspelt_setting_is_refused(tmp_path):
    finished = call("train", "dtc", "--max_iteration", "5", cwd=tmp_path)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.strip().splitlines()[-1].startswith("error: max_iteration is no id")
    assert json.loads((ROOT / "configs" / "train.json").read_text())["max_iterations"] == 17000
