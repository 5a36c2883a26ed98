"""Bundle: packs what a user of the bundle needs into a zip that is the same byte for byte wherever it is made."""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.command import ROOT
from scripts.errors import UserError
from scripts.files import sha256
from tools.command_line import run_command
from tools.format_configs import formatted

# The folder in the zip: by this name monai.bundle.load finds the bundle.
NAME = "dbisl_semi_supervised_segmentation"
REQUIRED = (
    "LICENSE",
    "configs/inference.json",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "models/model.json",
)
# A list of what belongs in, not of what does not: a forgotten file of the working folder is never published.
CONTENTS = (
    "LICENSE",
    "CITATION.cff",
    "Dockerfile",
    "requirements.txt",
    "requirements-inference.txt",
    "configs/**/*.json",
    "configs/logging.conf",
    # Those that say how to use what is in the zip. The others are about the repository's tools, tests and benchmarks.
    "docs/README.md",
    "docs/data.md",
    "docs/export.md",
    "docs/inference.md",
    "docs/preflight.md",
    "docs/training.md",
    "docs/data_license.txt",
    "docs/figures/model_*.png",
    "docs/federated/job/**/*.json",
    "scripts/**/*.py",
    "models/model.json",
)
# README.md of the zip; that of the repository is about a working copy.
README = Path(__file__).with_name("zip_readme.md")
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)#]+)(#[^)]*)?\)")
WEIGHTS = ("models/model.pt", "models/model.ts")
LARGE_FILES = "large_files.yml"
LARGE_FILES_HEAD = """# The weights and their SHA-256, by tools.release.model and tools.release.bundle.
# python -m monai.bundle download_large_files
# fetches what is missing and compares what is there; a file: address is that of a file which comes with the bundle.
"""
# The earliest time that a zip can state.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def contents(root: Path) -> list[str]:
    """The files of the bundle but its weights, as sorted paths relative to ``root`` with forward slashes.

    Raises:
        UserError: when one that every bundle has is missing, or one is a link, which might lead out of the bundle.
    """
    missing = [name for name in REQUIRED if not (root / name).is_file()]
    if missing:
        raise UserError(f"{root} has no {', '.join(missing)}: a bundle needs {', '.join(REQUIRED)}.")
    files = {path for pattern in CONTENTS for path in root.glob(pattern) if path.is_file()}
    links = sorted(str(path) for path in files if path.is_symlink())
    if links:
        raise UserError(f"{links[0]} is a link: put the file itself into the bundle.")
    return sorted(path.relative_to(root).as_posix() for path in files)


def large_files(root: Path, weights: list[str], models_url: str | None) -> str:
    """The content of large_files.yml: where ``monai.bundle download_large_files`` gets the weights, and their hashes.

    Of a file that is there already that command, and the Model Zoo's check, which begins with it, compare the hash.

    Args:
        root: of the bundle.
        weights: paths relative to ``root``.
        models_url: the address of the folder that serves them; None when they are in the bundle itself.
    """
    lines = [LARGE_FILES_HEAD + "large_files:"]
    for path in weights:
        address = f"{models_url.rstrip('/')}/{Path(path).name}" if models_url else f"file:{path}"
        lines += [
            f'  - path: "{path}"',
            f'    url: "{address}"',
            f'    hash_val: "{sha256(root / path)}"',
            '    hash_type: "sha256"',
        ]
    return "\n".join(lines) + "\n"


def stand_alone(files: dict[str, bytes]) -> None:
    """Gives the zip its own README.md, and makes links to pages that are not in it plain text, in place."""
    files["README.md"] = README.read_bytes()
    for name in [name for name in files if name.endswith(".md")]:
        folder = Path(name).parent

        def kept(link: re.Match[str], folder: Path = folder) -> str:
            target = os.path.normpath(folder / link[2])
            return link[0] if Path(target).as_posix() in files else link[1]

        files[name] = LINK.sub(kept, files[name].decode()).encode()


def match_settings(files: dict[str, bytes]) -> None:
    """Writes the settings of models/model.json into train.json, inference.json and the metadata's channels, in place.

    Clients read these files alone: with other settings than those of models/model.pt, MONAI Label could not load the
    weights to train them on, and ``monai.bundle.load`` would leave out what does not fit without a word.
    """
    settings = json.loads(files["models/model.json"])
    settings.pop("run_digest", None)  # says nothing where the run is not
    for name in ("configs/train.json", "configs/inference.json"):
        files[name] = as_json({**json.loads(files[name]), **settings})
    metadata = json.loads(files["configs/metadata.json"])
    describe_network(metadata, settings)
    files["configs/metadata.json"] = as_json(metadata)


def describe_network(metadata: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes channels and class names of models/model.json into the metadata, in place."""
    (image,) = metadata["network_data_format"]["inputs"].values()
    (prediction,) = metadata["network_data_format"]["outputs"].values()
    image["num_channels"] = settings["in_channels"]
    image["channel_def"] = {str(i): "image" for i in range(settings["in_channels"])}
    prediction["num_channels"] = settings["num_classes"]
    names = settings["class_names"] or [f"class {i + 1}" for i in range(settings["num_classes"])]
    prediction["channel_def"] = {str(i): name for i, name in enumerate(["background", *names])}


def as_json(content: object) -> bytes:
    return (formatted(content) + "\n").encode()


def make_bundle(
    output_dir: str | Path = "dist", *, models_url: str | None = None, matched: bool = False, root: str | Path = ROOT
) -> Path:
    """Writes ``<output_dir>/<name>_v<version>.zip``, whose only folder is the bundle.

    It holds the configs, scripts, documents and weights; no tests, benchmarks or outputs. Names are sorted, times and
    permissions fixed, and nothing is compressed, since compressors differ between versions of zlib.

    Args:
        output_dir: made if missing.
        models_url: leaves models/model.pt and models/model.ts out and lists them in large_files.yml with this address
            and their SHA-256, for weights above the Model Zoo's limit of 25 MB.
        matched: writes the settings that the weights were trained with into the configs, see :func:`match_settings`.
        root: of the bundle.

    Returns:
        Path of the zip.

    Raises:
        UserError: when a file that every bundle has is missing, or a file is a link.
    """
    root = Path(root)
    weights = [name for name in WEIGHTS if (root / name).is_file()]
    if WEIGHTS[0] not in weights:
        raise UserError(f"{root / WEIGHTS[0]} does not exist: train first, or copy the weights there.")
    files = {name: (root / name).read_bytes() for name in contents(root) + ([] if models_url else weights)}
    if matched:
        match_settings(files)
    stand_alone(files)
    files[LARGE_FILES] = large_files(root, weights, models_url).encode()
    version = json.loads(files["configs/metadata.json"])["version"]
    path = Path(str(output_dir)) / f"{NAME}_v{version}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", date_time=TIMESTAMP)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name], compress_type=zipfile.ZIP_STORED)
    return path


def main(output_dir: str = "dist", models_url: str | None = None, matched: bool = False) -> None:
    """Writes the zip and prints its path and SHA-256; see :func:`make_bundle`."""
    path = make_bundle(output_dir, models_url=models_url, matched=matched)
    print(f"{path}\nsha256 {sha256(path)}")


if __name__ == "__main__":
    run_command(main)
