"""Settings: type and meaning of every config id, and whether it may change when a run continues.

docs/reference.md, the commands' help and the checks of a run that continues follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Section of the page -> id -> (type, meaning). "number" takes integers, too; "expression" is a $ expression or a
# reference, for values that no literal can have; "object" is a part with a _target_.
IDS: dict[str, dict[str, tuple[str, str]]] = {
    "Folders and files": {
        "bundle_root": ("path", "folder to which the defaults below are relative"),
        "dataset_dir": (
            "path",
            "folder with `dataset.json` ([data.md](data.md)); at inference the default of `input_dir`",
        ),
        "input_dir": (
            "path",
            "input of inference: a folder with its subfolders, a file, or a list ([inference.md](inference.md))",
        ),
        "output_dir": ("path", "for logs, checkpoints, masks and tables; created if missing"),
        "ckpt_dir": (
            "path",
            "for `model.pt`, `model_best.pt` and their settings; default of the commands: `<output_dir>/models`",
        ),
        "ckpt_path": ("path or list of paths", "weights; a list makes an ensemble ([inference.md](inference.md))"),
    },
    "Data": {
        "num_labeled": ("integer", "number of labeled training cases, the first of the list; all others are unlabeled"),
        "labeled_draw": (
            "integer",
            "0: the first cases are the labeled ones; any other number: a random draw of the cases that have a label",
        ),
        "splits": (
            "map of ranges or null",
            "splits a data set that has only the list `training`: `{'training':[0,56],'test':[64,80]}`",
        ),
        "in_channels": ("integer", "channels (modalities) of an image"),
        "modalities": (
            "list of texts or null",
            "endings of the file names of a case's channels ([inference.md](inference.md)); null: 0000, 0001 and so on",
        ),
        "num_classes": ("integer", "number of foreground classes; label values are 0 (background) to `num_classes`"),
        "class_names": ("list of texts or null", "names of the classes in the tables; null: numbers"),
        "label_values": (
            "list of integers or null",
            "values of the classes in masks, if the labels were renumbered for the training: `[1, 3]`",
        ),
        "regions": (
            "list of lists of integers or null",
            "for overlapping classes, the label values of each; null: every voxel has one class",
        ),
        "ignore_value": (
            "integer or null",
            "label value, 1 to 32767, of unannotated voxels ([partial labels](how_to/partial_labels.md))",
        ),
        "spacing": ("3 numbers or null", "voxel size in mm to which volumes are resampled; null: no resampling"),
        "intensity_window": ("2 numbers or null", "range to clip intensities to before the z-score; in HU for CT"),
        "normalize_nonzero": ("boolean", "leaves voxels that are exactly 0 out of the z-score (skull-stripped MR)"),
        "patch_size": ("3 integers", "size in voxels of a crop and of a window; multiples of 16 along every axis"),
        "crop_margin": ("number", "factor by which crops are larger than the patch before `spatial_augmentation`"),
        "crop_size": ("object", "size in voxels of a crop before it is augmented and cut to the patch"),
        "foreground_crops": (
            "number",
            "share, 0 to 1, of labeled crops that are centred on foreground; 0: all crops are random",
        ),
        "intensity_augmentation": (
            "list",
            "random intensity transforms of crops (`configs/augmentations/intensity.json`); none in the papers",
        ),
        "augmentation": ("list", "random quarter turns and flips of labeled and unlabeled crops"),
        "spatial_augmentation": (
            "list",
            "random rotation, scaling, deformation of crops (`configs/augmentations/spatial.json`); none in the papers",
        ),
        "num_workers": (
            "integer",
            "processes that prepare crops, for each of the two streams; 0: the training process",
        ),
        "cache_rate": (
            "number",
            "share of the training's volumes that lie in memory; the others are read, crop by crop, from files in "
            "`output_dir`",
        ),
        "cache_device": (
            "text",
            "where volumes are cached, cropped and augmented: `cpu`, or `cuda` if they fit, with `num_workers` 0",
        ),
        "label_coding": ("object", "converts between label values and channels of the network"),
        "datalist": ("object", "reads and splits `dataset.json`"),
    },
    "Network": {
        "base_filters": ("integer", "channels at full resolution; parameters and cost grow with the square"),
        "normalization": (
            "text",
            "`batch`, `group` or `instance`; the last two normalise each crop separately ([networks.md](networks.md))",
        ),
        "dropout": (
            "number",
            "share of channels dropped in training, at the bottleneck and before the heads; use less with few "
            "`base_filters` ([methods/dbisl.md](methods/dbisl.md#dropout))",
        ),
        "network_def": ("object", "the network; a method or network overlay replaces it"),
        "network": ("object", "`network_def` on `device`, with `initial_weights` if given"),
        "model_settings": (
            "map",
            "settings that training writes to `model.json`, and that evaluation and inference compare with it",
        ),
    },
    "Training": {
        "seed": ("integer", "seed of weights, crops, dropout and noise"),
        "max_iterations": (
            "integer",
            "steps of the optimiser; ramps and learning rate decay are fractions of this number",
        ),
        "labeled_batch_size": ("integer", "labeled crops per iteration"),
        "unlabeled_batch_size": ("integer", "unlabeled crops per iteration; 0: no unlabeled cases are used"),
        "pseudo_batch_size": (
            "integer",
            "crops with pseudo-labels per iteration, besides the labeled ones ([how to](how_to/self_training.md))",
        ),
        "pseudo_weight": ("number", "weight of the data's pseudo-labels; true labels have weight 1"),
        "true_label_iterations": ("integer", "number of iterations at the end without the data's pseudo-labels"),
        "initial_weights": ("text or null", "weights of another run to start from; skips tensors that do not fit"),
        "learning_rate": ("number", "learning rate at the start"),
        "parameters": ("object", "parameters to optimise, of the network and of the method"),
        "optimizer": ("object", "optimiser; `configs/budgets/cpu.json` sets AdamW"),
        "lr_scheduler": ("object", "polynomial decay over the run, stepped every iteration"),
        "objective": ("object", "loss to minimise: terms, and their weights by name; a method overlay replaces it"),
        "lambda_weight": ("number", "DBiSL's lambda; other methods do not use it"),
        "ramp_length": ("number", "iterations until the ramps reach full weight"),
        "ramp": ("object", "weight that grows to 1"),
        "lambda_ramp": ("object", "weight that grows to `lambda_weight`"),
        "distance_spacing": (
            "3 numbers or null",
            "voxel size in mm for distance maps ([anisotropic data](how_to/anisotropic_data.md)); null: voxels",
        ),
        "distance_transform": ("object", "operator of the distance maps: exact or cascaded"),
        "segmentation_to_distance": ("object", "converts a mask to a signed distance map, differentiably"),
        "distance_to_segmentation": ("object", "converts a signed distance map to a mask with a steep sigmoid"),
        "amp": (
            "boolean or text",
            "mixed precision on a GPU, also in evaluation and inference: true (bfloat16 if the GPU supports it), "
            "`bfloat16` or `float16`",
        ),
        "amp_options": ("object", "arguments of autocast, from `amp` and `device`"),
        "compile": (
            "boolean or text",
            "true: `torch.compile` compiles network and method ([performance.md](performance.md)); or a backend",
        ),
        "device": ("object", "`cuda` if there is a GPU; `\"$torch.device('cpu')\"` selects the CPU"),
        "val_interval": ("integer", "epochs between validations"),
        "epoch_length": ("object", "iterations per epoch: the largest divisor of `max_iterations` up to 100"),
        "num_epochs": ("expression", "number of epochs, from `max_iterations` and `epoch_length`"),
        "log_interval": ("integer", "iterations between rows of `training_log.csv`"),
        "picture_interval": (
            "integer",
            "iterations between pictures of the crops ([training.md](training.md)); 0: none",
        ),
        "non_finite_loss": (
            "text",
            "what to do when the loss is not finite: `stop`, or `skip` the batch ([training.md](training.md))",
        ),
        "worker_timeout": ("integer", "seconds to wait for a data worker before the run stops with an error"),
        "gradient_norm_interval": ("integer", "iterations between measurements of each term's gradient norm; 0: never"),
        "checkpoint_interval": ("integer", "iterations between checkpoints ([resume](how_to/resume_a_run.md))"),
        "resume": ("text", "`auto` continues the run in `output_dir` where it stopped; `never` starts a new run"),
        "run_preflight": ("boolean", "checks the data before training ([preflight.md](preflight.md))"),
    },
    "Tracking": {
        "mlflow": (
            "boolean",
            "records the training in MLflow ([track](how_to/track_with_mlflow.md)); `--tracking mlflow` sets it",
        ),
        "tensorboard": ("boolean", "writes the logs for TensorBoard into `output_dir/tensorboard`"),
        "tracking_uri": ("object", "database or address of MLflow's store; MLFLOW_TRACKING_URI overrides it"),
        "experiment_name": ("text", "name under which MLflow lists the run"),
        "run_name": ("text or null", "name of the run in MLflow; null: the name of the folder `output_dir`"),
        "save_execute_config": ("boolean", "MONAI's setting: whether its own tracking writes the config to a file"),
        "merged_config": ("map or null", "the whole config, for `run.json` and tracking; set by the command"),
    },
    "Evaluation and inference": {
        "stride": ("3 integers", "voxels between windows; smaller strides are slower and give smoother results"),
        "sw_batch_size": ("object", "windows per batch, an integer; by default chosen from the free memory, at most 4"),
        "evaluation_list": (
            "text",
            "cases to evaluate: `test`, or `validation` for model selection ([protocol.md](protocol.md))",
        ),
        "surface_tolerance": ("number", "tolerance of the surface Dice in mm ([metrics.md](metrics.md))"),
        "save_probability": ("boolean", "writes `<case>_probability.nii.gz`"),
        "save_distance": ("boolean", "writes `<case>_distance.nii.gz`"),
        "save_uncertainty": ("boolean", "writes `<case>_uncertainty.nii.gz`"),
        "save_volumes": ("boolean", "writes `volumes.csv`"),
        "largest_component": ("boolean", "keeps only the largest connected part of every class"),
        "preview": ("boolean", "draws the contours of every case and writes `preview.html`; needs matplotlib"),
        "decoders": ("text", "decoders to use: `both`, `phi` or `psi`"),
        "heads": (
            "text",
            "heads of these decoders whose probabilities give the mask: `segmentation`, `distance` or `all`",
        ),
        "threshold": ("number", "probability above which a voxel is foreground; or a list with one value per class"),
        "flip_axes": ("list of integers", "axes, 0 to 2, along which to flip the input and average the results"),
        "overwrite": ("boolean", "segments all volumes again; false: continues where a run stopped"),
        "share": (
            "text or null",
            "`3/64`: segments the third of 64 shares of the cases, for several jobs ([inference.md](inference.md))",
        ),
        "networks": ("object", "one copy of the network per file in `ckpt_path`"),
        "maps": ("object", "additional outputs, from `save_distance` and `save_uncertainty`"),
        "preprocessing": ("object", "transforms of a volume; their inverse restores the original grid"),
        "root": ("object", "folder of the inputs; outputs keep the path of their image below it"),
        "cases": ("object", "the volumes of `input_dir`"),
        "record": ("object", "records how the masks in `output_dir` were made; finds the volumes still to segment"),
        "run_digest": ("text or null", "digest of the training that made the weights, from `model.json`"),
        "dataset": ("object", "volumes that are not segmented yet"),
        "dataloader": ("object", "loads one volume at a time; a broken volume becomes a row of `failures.csv`"),
        "inferer": ("object", "sliding windows (memory: [little_memory.md](how_to/little_memory.md))"),
        "postprocessing": ("object", "inverse of the preprocessing, maps, mask, files"),
        "handlers": ("list", "loads the weights"),
        "evaluator": ("object", "applies network and transforms to the volumes"),
    },
    "What can be run": {
        "training": ("list", "`run training`: preflight, then starts or continues the training"),
        "evaluation": (
            "list",
            "`run evaluation`, with `configs/evaluate.json` last: evaluates the final weights on `evaluation_list`",
        ),
        "inference": ("list", "`run inference`, with `configs/inference.json`"),
        "preflight": ("list", "`run preflight`, with `configs/preflight.json`: only the checks"),
        "run": (
            "list",
            "the same under the name that MONAI's clients call; in train.json without preflight and resuming",
        ),
        "initialize": ("list", "runs before `run` and `training`: sets seeds"),
        "preflight_checks": ("object", "the checks and their arguments, such as `preflight_checks#workers`"),
        "train": ("map", "parts of the training (see below)"),
        "validate": ("map", "parts of the validation; `configs/evaluate.json` turns them into those of the evaluation"),
        "imports": ("list", "modules that `$` expressions use"),
        "about": ("text", "purpose of the file, for readers and for `--help`"),
    },
}

# The id `model_settings`: what belongs to the model, which training writes into model.json. True: it decides how a
# volume is prepared, and has to be the same wherever the weights are used.
MODEL_SETTINGS = {
    "in_channels": True,
    "num_classes": True,
    "class_names": False,
    "label_values": False,
    "regions": True,
    "base_filters": False,
    "normalization": False,
    "dropout": False,
    "spacing": True,
    "intensity_window": True,
    "normalize_nonzero": True,
    "largest_component": False,
    "patch_size": False,
    "stride": False,
}

# Parts within `train` and `validate`; the first are those that MONAI's clients look for by these names.
PARTS: dict[str, dict[str, str]] = {
    "train": {
        "trainer": "joins both batches and runs network and objective",
        "dataset": "preprocessed labeled cases, in memory or in files",
        "dataloader": "endless stream of labeled crops",
        "preprocessing": "loads, crops and augments cases, and cuts the crops to the patch",
        "inferer": "one forward pass",
        "handlers": "validation, weights, `model.json`, logs, `run.html`, learning rate, checkpoints",
        "load_transforms": "from file to normalised volume; cached",
        "crop_transforms": "pads and crops labeled cases",
        "fit_transforms": "cuts crops to the patch",
        "unlabeled_crop_transforms": "pads and crops unlabeled cases; never sees a label",
        "unlabeled_preprocessing": "like `preprocessing`, for unlabeled cases",
        "labeled_cases": "the `num_labeled` labeled cases, checked",
        "unlabeled_cases": "all other cases, images only, checked",
        "pseudo_cases": "cases with pseudo-labels if `pseudo_batch_size` is not 0, checked",
        "pseudo_dataset": "cached cases with pseudo-labels",
        "pseudo_dataloader": "endless stream of crops with pseudo-labels",
        "unlabeled_dataset": "preprocessed unlabeled cases",
        "unlabeled_dataloader": "endless stream of unlabeled crops",
        "inference_overlay": "settings that are written beside the weights",
        "data": "lists of cases whose digest is recorded",
        "description": "what `run.json` records when a run starts",
        "run_state": "contents of a checkpoint, and the settings that a resumed run must not change",
    },
    "validate": {
        "evaluator": "applies the network by sliding windows and computes metrics",
        "dataset": "validation cases; in evaluation the cases of `evaluation_list`",
        "dataloader": "loads one case at a time",
        "inferer": "sliding windows with an overlap of a quarter; in evaluation with `stride`",
        "preprocessing": "the transforms below",
        "postprocessing": "makes the mask; in evaluation also returns it to the image's geometry and saves it",
        "handlers": "write `model_best.pt`; in evaluation load the weights and write metrics and tables",
        "key_metric": "mean Dice, which selects `model_best.pt`",
        "load_transforms": "like those of the training; in evaluation the label stays on its own grid",
        "tolerant_dataset": "lets the other cases continue if one fails (evaluation)",
    },
}

# What a run keeps when it continues: with another value its result would belong to neither.
FIXED = frozenset("""
    num_labeled labeled_draw splits in_channels num_classes regions ignore_value spacing intensity_window
    normalize_nonzero patch_size crop_margin crop_size foreground_crops intensity_augmentation augmentation
    spatial_augmentation label_coding datalist
    base_filters normalization dropout network_def
    seed max_iterations labeled_batch_size unlabeled_batch_size pseudo_batch_size pseudo_weight true_label_iterations
    initial_weights learning_rate parameters optimizer lr_scheduler objective lambda_weight ramp_length ramp lambda_ramp
    distance_spacing distance_transform segmentation_to_distance distance_to_segmentation epoch_length num_epochs
    train#preprocessing train#load_transforms train#crop_transforms train#fit_transforms
    train#unlabeled_crop_transforms train#unlabeled_preprocessing
    """.split())
# What may change without a word: where a run writes, how it is followed and stopped, and what comes after it.
FREE = frozenset("""
    class_names label_values num_workers cache_device log_interval picture_interval gradient_norm_interval
    checkpoint_interval worker_timeout resume run_preflight
    """.split()).union(*(IDS[section] for section in ("Folders and files", "Tracking", "Evaluation and inference")))
FREE |= set(IDS["What can be run"]) - {"train", "validate"}


def on_resume(name: str) -> str:
    """Whether the id ``name`` is "fixed" or "free" when a run continues, or "named": changed, it causes a warning."""
    return "fixed" if name in FIXED else "free" if name in FREE else "named"


def fixed_settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ids of a merged config that a run keeps, unevaluated; none where the config is not known (None)."""
    found = {}
    for name in sorted(FIXED):
        value: Any = config
        for part in name.split("#"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(config, Mapping) and (value is not None or name in config):
            found[name] = value
    return found


def flat(config: Any, name: str = "") -> dict[str, Any]:
    """The values of a nest of dictionaries by their ids, such as ``optimizer#momentum``; lists stay whole."""
    if not isinstance(config, Mapping):
        return {name: config} if name else {}
    return {
        key: value
        for inner in config
        for key, value in flat(config[inner], f"{name}#{inner}" if name else inner).items()
    }
