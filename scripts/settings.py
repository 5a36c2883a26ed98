"""Settings: type and meaning of every config id, and whether it may change when a run continues.

docs/reference.md, the commands' help and the checks of a run that continues follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# A section of the page, then one id per line: name | type | when a run continues | meaning. An indented line continues
# the line above. "number" takes integers, too; "expression" is a $ expression or a reference, for values that no
# literal can have; "object" is a part with a _target_. When a run continues, "fixed" ids must keep their value, since
# with another one the result would belong to neither run; "named" ids cause a warning if they changed; "free" ids may
# change: where a run writes, how it is followed and stopped, and what comes after it.
TABLE = """
# Folders and files
bundle_root | path | free | folder to which the defaults below are relative
dataset_dir | path | free | folder with `dataset.json` ([data.md](data.md)); at inference the default of `input_dir`
input_dir | path | free | input of inference: a folder with its subfolders, a file, or a list
    ([inference.md](inference.md))
output_dir | path | free | for logs, checkpoints, masks and tables; created if missing
ckpt_dir | path | free | for `model.pt`, `model_best.pt` and their settings; default of the commands:
    `<output_dir>/models`
ckpt_path | path or list of paths | free | weights; a list makes an ensemble ([inference.md](inference.md))

# Data
num_labeled | integer | fixed | number of labeled training cases, the first of the list; all others are unlabeled
labeled_draw | integer | fixed | 0: the first cases are the labeled ones; any other number: a random selection of the
    cases that have a label
splits | map of ranges or null | fixed | splits a data set that has only the list `training`:
    `{'training':[0,56],'test':[64,80]}`
in_channels | integer | fixed | channels (modalities) of an image
modalities | list of texts or null | named | endings of the file names of a case's channels
    ([inference.md](inference.md)); null: 0000, 0001 and so on
num_classes | integer | fixed | number of foreground classes; label values are 0 (background) to `num_classes`
class_names | list of texts or null | free | names of the classes in the tables; null: numbers
label_values | list of integers or null | free | original values of the classes, for the masks, if the labels were
    renumbered for the training: `[1, 3]`
regions | list of lists of integers or null | fixed | for overlapping classes, the label values of each; null: every
    voxel has one class
ignore_value | integer or null | fixed | label value, 1 to 32767, of unannotated voxels ([partial
    labels](how_to/partial_labels.md))
spacing | 3 numbers or null | fixed | voxel size in mm to which volumes are resampled; null: no resampling
intensity_window | 2 numbers or null | fixed | range to clip intensities to before the z-score; in HU for CT
normalize_nonzero | boolean | fixed | true: the z-score ignores voxels that are exactly 0 (skull-stripped MR)
patch_size | 3 integers | fixed | size in voxels of a crop and of a window; multiples of 16 along every axis
crop_margin | number | fixed | factor by which crops are larger than the patch before `spatial_augmentation`
crop_size | object | fixed | size in voxels of a crop before it is augmented and cut to the patch
foreground_crops | number | fixed | share, 0 to 1, of labeled crops that are centred on foreground; 0: all crops are
    random
intensity_augmentation | list | fixed | random intensity transforms of crops (`configs/augmentations/intensity.json`);
    none in the papers
augmentation | list | fixed | random quarter turns and flips of labeled and unlabeled crops
spatial_augmentation | list | fixed | random rotation, scaling, deformation of crops
    (`configs/augmentations/spatial.json`); none in the papers
num_workers | integer | free | processes that prepare crops, for each of the two streams; 0: the training process
cache_rate | number | named | share of the training volumes kept in memory; the others are read, crop by crop, from
    files in `output_dir`
cache_device | text | free | where volumes are cached, cropped and augmented: `cpu`, or `cuda` if they fit, with
    `num_workers` 0
label_coding | object | fixed | converts between label values and channels of the network
datalist | object | fixed | reads and splits `dataset.json`

# Network
base_filters | integer | fixed | channels at full resolution; parameters and cost grow with the square
normalization | text | fixed | `batch`, `group` or `instance`; the last two normalise each crop separately
    ([networks.md](networks.md))
dropout | number | fixed | share of channels dropped in training, at the bottleneck and before the heads; use less with
    few `base_filters` ([methods/dbisl.md](methods/dbisl.md#dropout))
network_def | object | fixed | the network; a method or network overlay replaces it
network | object | named | `network_def` on `device`, with `initial_weights` if given
model_settings | map | named | settings that training writes to `model.json`; evaluation and inference compare
    theirs with them

# Training
seed | integer | fixed | seed of weights, crops, dropout and noise
max_iterations | integer | fixed | steps of the optimiser; ramps and learning rate decay are fractions of this number
labeled_batch_size | integer | fixed | labeled crops per iteration
unlabeled_batch_size | integer | fixed | unlabeled crops per iteration; 0: no unlabeled cases are used
pseudo_batch_size | integer | fixed | crops with pseudo-labels per iteration, besides the labeled ones ([how
    to](how_to/self_training.md))
pseudo_weight | number | fixed | weight of the data's pseudo-labels; true labels have weight 1
true_label_iterations | integer | fixed | number of iterations at the end without the data's pseudo-labels
initial_weights | text or null | fixed | weights of another run to start from; skips tensors that do not fit
learning_rate | number | fixed | learning rate at the start
parameters | object | fixed | parameters to optimise, of the network and of the method
optimizer | object | fixed | optimiser; `configs/budgets/cpu.json` sets AdamW
lr_scheduler | object | fixed | polynomial decay over the run, stepped every iteration
objective | object | fixed | loss to minimise: terms, and their weights by name; a method overlay replaces it
lambda_weight | number | fixed | DBiSL's lambda; other methods do not use it
ramp_length | number | fixed | iterations until the ramps reach full weight
ramp | object | fixed | weight that grows to 1
lambda_ramp | object | fixed | weight that grows to `lambda_weight`
distance_spacing | 3 numbers or null | fixed | voxel size in mm for distance maps ([anisotropic
    data](how_to/anisotropic_data.md)); null: voxels
distance_transform | object | fixed | operator of the distance maps: exact or cascaded
segmentation_to_distance | object | fixed | converts a mask to a signed distance map, differentiably
distance_to_segmentation | object | fixed | converts a signed distance map to a mask with a steep sigmoid
amp | boolean or text | named | mixed precision, also in evaluation and inference: true (bfloat16 if the device
    computes in it), `bfloat16` or `float16` (GPU only)
amp_options | object | named | arguments of autocast, from `amp` and `device`
compile | boolean or text | named | true: `torch.compile` compiles network and method
    ([performance.md](performance.md)); or a backend
device | object | named | `cuda` if there is a GPU; `"$torch.device('cpu')"` selects the CPU
val_interval | integer | named | epochs between validations
epoch_length | object | fixed | iterations per epoch: the largest divisor of `max_iterations` up to 100
num_epochs | expression | fixed | number of epochs, from `max_iterations` and `epoch_length`
log_interval | integer | free | iterations between rows of `training_log.csv`
picture_interval | integer | free | iterations between pictures of the crops ([training.md](training.md)); 0: none
non_finite_loss | text | named | what to do if the loss is not finite: `stop` the run, or `skip` the batch
    ([training.md](training.md))
worker_timeout | integer | free | seconds to wait for a data worker before the run stops with an error
gradient_norm_interval | integer | free | iterations between measurements of each term's gradient norm; 0: never
checkpoint_interval | integer | free | iterations between checkpoints ([resume](how_to/resume_a_run.md))
resume | text | free | `auto` continues the run in `output_dir` where it stopped; `never` starts a new run
run_preflight | boolean | free | checks the data before training ([preflight.md](preflight.md))

# Tracking
mlflow | boolean | free | records the training in MLflow ([track](how_to/track_with_mlflow.md)); `--tracking mlflow`
    sets it
tracking_uri | object | free | database or address of MLflow's store; MLFLOW_TRACKING_URI overrides it
experiment_name | text | free | name under which MLflow lists the run
run_name | text or null | free | name of the run in MLflow; null: the name of the folder `output_dir`
save_execute_config | boolean | free | MONAI's setting: whether its own tracking writes the config to a file
merged_config | map or null | free | the whole config, for `run.json` and tracking; set by the command

# Evaluation and inference
stride | 3 integers | free | voxels between windows; smaller strides are slower and give smoother results
sw_batch_size | object | free | windows per batch, an integer; by default chosen from the free memory, at most 4
evaluation_list | text | free | cases to evaluate: `test`, or `validation` for model selection
    ([protocol.md](protocol.md))
surface_tolerance | number | free | tolerance of the surface Dice in mm ([metrics.md](metrics.md))
save_probability | boolean | free | writes `<case>_probability.nii.gz`
save_distance | boolean | free | writes `<case>_distance.nii.gz`
save_uncertainty | boolean | free | writes `<case>_uncertainty.nii.gz`
save_volumes | boolean | free | writes `volumes.csv`
largest_component | boolean | free | keeps only the largest connected part of every class
preview | boolean | free | draws the contours of every case and writes `preview.html`; needs matplotlib
decoders | text | free | decoders to use: `both`, `phi` or `psi`
heads | text | free | heads of these decoders whose probabilities give the mask: `segmentation`, `distance` or `all`
threshold | number | free | probability above which a voxel is foreground; or a list with one value per class
flip_axes | list of integers | free | axes, 0 to 2, along which to flip the input and average the results
overwrite | boolean | free | segments all volumes again; false: continues where a run stopped
share | text or null | free | `3/64`: segments the third of 64 shares of the cases, for several jobs
    ([inference.md](inference.md))
networks | object | free | one copy of the network per file in `ckpt_path`
maps | object | free | additional outputs, from `save_distance` and `save_uncertainty`
preprocessing | object | free | transforms of a volume; their inverse restores the original grid
root | object | free | folder of the inputs; outputs keep the path of their image below it
cases | object | free | the volumes of `input_dir`
record | object | free | records how the masks in `output_dir` were made; finds the volumes still to segment
run_digest | text or null | free | digest of the training that made the weights, from `model.json`
dataset | object | free | volumes that are not segmented yet
dataloader | object | free | loads one volume at a time; a broken volume becomes a row of `failures.csv`
inferer | object | free | sliding windows (memory: [little_memory.md](how_to/little_memory.md))
postprocessing | object | free | inverse of the preprocessing, maps, mask, files
handlers | list | free | loads the weights
evaluator | object | free | applies network and transforms to the volumes

# What can be run
training | list | free | `run training`: preflight, then starts or continues the training
evaluation | list | free | `run evaluation`, with `configs/evaluate.json` last: evaluates the final weights on
    `evaluation_list`
inference | list | free | `run inference`, with `configs/inference.json`
preflight | list | free | `run preflight`, with `configs/preflight.json`: only the checks
run | list | free | the same under the name that MONAI's clients call; in train.json without preflight or resuming
initialize | list | free | runs before `run` and `training`; sets the seeds
preflight_checks | object | free | the checks and their arguments, such as `preflight_checks#workers`
train | map | named | parts of the training (see below)
validate | map | named | parts of the validation; `configs/evaluate.json` turns them into those of the evaluation
imports | list | free | modules that `$` expressions use
about | text | free | purpose of the file, for readers and for `--help`
"""

# Parts within `train` and `validate`: name | when a run continues | meaning. MONAI's clients look for the first ones by
# these names.
TABLE_OF_PARTS = """
# train
trainer | named | joins both batches and runs network and objective
dataset | named | preprocessed labeled cases, in memory or in files
dataloader | named | endless stream of labeled crops
preprocessing | fixed | loads, crops and augments cases, and cuts the crops to the patch
inferer | named | one forward pass
handlers | named | validation, weights, `model.json`, logs, `run.html`, learning rate, checkpoints
load_transforms | fixed | from file to normalised volume; cached
crop_transforms | fixed | pads and crops cases
fit_transforms | fixed | cuts crops to the patch
pseudo_dataset | named | cached cases with pseudo-labels
pseudo_dataloader | named | endless stream of crops with pseudo-labels
unlabeled_dataset | named | preprocessed unlabeled cases
unlabeled_dataloader | named | endless stream of unlabeled crops
inference_overlay | named | settings that are written beside the weights
data | named | lists of cases whose digest is recorded
description | named | what `run.json` records when a run starts
run_state | named | contents of a checkpoint, and the settings that a resumed run must not change

# validate
evaluator | named | applies the network by sliding windows and computes metrics
dataset | named | validation cases; in evaluation the cases of `evaluation_list`
dataloader | named | loads one case at a time
inferer | named | sliding windows with an overlap of a quarter; in evaluation with `stride`
preprocessing | named | the transforms below
postprocessing | named | makes the mask; in evaluation also returns it to the image's geometry and saves it
handlers | named | write `model_best.pt`; in evaluation load the weights and write metrics and tables
key_metric | named | mean Dice, which selects `model_best.pt`
load_transforms | named | like those of the training; in evaluation the label stays on its own grid
tolerant_dataset | named | lets the other cases continue if one fails (evaluation)
"""


def _read(table: str) -> dict[str, dict[str, list[str]]]:
    """Section -> name -> the other cells of a row."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in re.sub(r"\n +", " ", table).split("\n"):
        if line.startswith("# "):
            rows = sections.setdefault(line[2:], {})
        elif line:
            name, *rest = line.split(" | ")
            rows[name] = rest
    return sections


# Section -> id -> (type, meaning); "train" or "validate" -> part -> meaning.
IDS = {title: {name: (kind, text) for name, (kind, _, text) in of.items()} for title, of in _read(TABLE).items()}
PARTS = {name: {part: text for part, (_, text) in of.items()} for name, of in _read(TABLE_OF_PARTS).items()}
_ON_RESUME = {name: word for of in _read(TABLE).values() for name, (_, word, _) in of.items()} | {
    f"{name}#{part}": word for name, of in _read(TABLE_OF_PARTS).items() for part, (word, _) in of.items()
}
FIXED, FREE = (frozenset(name for name, word in _ON_RESUME.items() if word == kind) for kind in ("fixed", "free"))

# The id `model_settings`: what belongs to the model, which training writes into model.json, in the order of the
# configs. True: it decides how a volume is prepared, and has to be the same wherever the weights are used.
_PREPARATION = ("in_channels", "num_classes", "regions", "spacing", "intensity_window", "normalize_nonzero")
MODEL_SETTINGS = {name: name in _PREPARATION for name in """
        in_channels num_classes class_names label_values regions base_filters normalization dropout
        spacing intensity_window normalize_nonzero largest_component patch_size stride
    """.split()}


def on_resume(name: str) -> str:
    """Whether the id ``name`` is "fixed" or "free" when a run continues, or "named": changed, it causes a warning."""
    return _ON_RESUME.get(name, "named")


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


def with_texts(value: Any, change: Callable[[str], Any]) -> Any:
    """``value``, a text or any nest of dictionaries and lists, with ``change`` applied to its texts but not to keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: with_texts(item, change) for name, item in value.items()}
    return [with_texts(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def is_expression(value: Any) -> bool:
    """Whether a value is a text that MONAI evaluates: an expression, a reference or a macro."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))
