"""Settings: the type and the meaning of every config id; docs/reference.md and the commands' help follow from it."""

from __future__ import annotations

# Section of the page -> id -> (type, meaning). "number" takes integers, too; "expression" is a $ expression or a
# reference, for values that no literal can have; "object" is a part with a _target_.
IDS: dict[str, dict[str, tuple[str, str]]] = {
    "Folders and files": {
        "bundle_root": ("path", "folder in which the relative defaults below lie"),
        "dataset_dir": (
            "path",
            "folder of `dataset.json` ([data.md](data.md)); at inference the default of `input_dir`",
        ),
        "input_dir": (
            "path",
            "what is segmented: a folder with its subfolders, a file, or a list ([inference.md](inference.md))",
        ),
        "output_dir": ("path", "receives logs, checkpoints, masks and tables; made if missing"),
        "ckpt_dir": (
            "path",
            "receives `model.pt`, `model_best.pt` and their settings; a command's default is `<output_dir>/models`",
        ),
        "ckpt_path": ("path or list of paths", "weights; a list is an ensemble ([inference.md](inference.md))"),
    },
    "Data": {
        "num_labeled": ("integer", "the first so many training cases are the labeled ones, all others are unlabeled"),
        "labeled_draw": (
            "integer",
            "which cases those are: 0, the first; any other number, a random order of the cases that have a label",
        ),
        "splits": (
            "map of ranges or null",
            "cuts `training` of a data set that has no other lists: `{'training':[0,56],'test':[64,80]}`",
        ),
        "in_channels": ("integer", "channels (modalities) of an image"),
        "modalities": (
            "list of texts or null",
            "what the files of a case's channels end in ([inference.md](inference.md)); null: 0000, 0001 and so on",
        ),
        "num_classes": ("integer", "foreground classes; label values are 0 (background) to `num_classes`"),
        "class_names": ("list of texts or null", "names in the tables; null numbers them"),
        "label_values": (
            "list of integers or null",
            "what masks have for the classes, where labels were renumbered for the training: `[1, 3]`",
        ),
        "regions": (
            "list of lists of integers or null",
            "for overlapping classes, the label values of each; null where every voxel has one class",
        ),
        "ignore_value": (
            "integer or null",
            "label value, 1 to 32767, of voxels that nobody annotated ([partial labels](how_to/partial_labels.md))",
        ),
        "spacing": ("3 numbers or null", "mm, to which volumes are resampled; null leaves them as they are"),
        "intensity_window": ("2 numbers or null", "intensities are clipped to it before the z-score; for CT, HU"),
        "normalize_nonzero": ("boolean", "the z-score leaves out voxels that are exactly 0 (skull-stripped MR)"),
        "patch_size": ("3 integers", "voxels of a crop and of a window, multiples of 16 along every axis"),
        "crop_margin": ("number", "crops are taken so many times as large as the patch, for `spatial_augmentation`"),
        "crop_size": ("object", "voxels of a crop before it is turned and cut to the patch"),
        "foreground_crops": (
            "number",
            "part, 0 to 1, of the labeled crops that are centred on foreground; 0: all random",
        ),
        "intensity_augmentation": (
            "list",
            "random transforms of each crop's intensities (`configs/augmentations/intensity.json`); papers: none",
        ),
        "augmentation": ("list", "random quarter turns and mirroring, of labeled and unlabeled crops"),
        "spatial_augmentation": (
            "list",
            "random rotation, scaling, deformation of crops (`configs/augmentations/spatial.json`); papers: none",
        ),
        "num_workers": ("integer", "processes that prepare crops, for each of the two streams; 0: none besides"),
        "cache_device": (
            "text",
            "where volumes are cached, cropped and augmented: `cpu`; `cuda` if they fit there, with `num_workers` 0",
        ),
        "label_coding": ("object", "between label values and channels of the network"),
        "datalist": ("object", "reads `dataset.json` and cuts it"),
    },
    "Network": {
        "base_filters": ("integer", "channels at full resolution; parameters and cost grow with its square"),
        "normalization": (
            "text",
            "`batch`, `group` or `instance`; the last two normalise every crop by itself ([networks.md](networks.md))",
        ),
        "dropout": (
            "number",
            "share of channels dropped in training, at the bottleneck and before the heads; with few "
            "`base_filters`, less is better ([methods/dbisl.md](methods/dbisl.md#dropout))",
        ),
        "network_def": ("object", "the network; a method or network overlay replaces it"),
        "network": ("object", "`network_def` on `device`, perhaps with `initial_weights`"),
        "model_settings": (
            "map",
            "what training writes into `model.json` and inference and evaluation compare with it",
        ),
    },
    "Training": {
        "seed": ("integer", "of weights, crops, dropout and noise"),
        "max_iterations": (
            "integer",
            "steps of the optimiser; ramps and the learning rate's decay are fractions of it",
        ),
        "labeled_batch_size": ("integer", "labeled crops of an iteration"),
        "unlabeled_batch_size": ("integer", "unlabeled crops of an iteration; 0 leaves unlabeled cases out altogether"),
        "pseudo_batch_size": (
            "integer",
            "crops with pseudo-labels in an iteration, beside the labeled ones ([how to](how_to/self_training.md))",
        ),
        "pseudo_weight": ("number", "what a pseudo-label of the data counts beside a true label's 1"),
        "true_label_iterations": ("integer", "the last so many iterations are without pseudo-labels of the data"),
        "initial_weights": ("text or null", "weights of another run to start from, as far as they fit"),
        "learning_rate": ("number", "at the start"),
        "parameters": ("object", "what is optimised: those of the network and of the method"),
        "optimizer": ("object", "`configs/budgets/cpu.json` replaces it by AdamW"),
        "lr_scheduler": ("object", "polynomial decay over the run, stepped every iteration"),
        "objective": ("object", "what is minimised: terms, and their weights by name; a method overlay replaces it"),
        "lambda_weight": ("number", "DBiSL's lambda; other methods do not have it"),
        "ramp_length": ("number", "iterations until the ramps are full"),
        "ramp": ("object", "weight that grows to 1"),
        "lambda_ramp": ("object", "weight that grows to `lambda_weight`"),
        "distance_spacing": (
            "3 numbers or null",
            "mm of a voxel for the distance maps ([anisotropic data](how_to/anisotropic_data.md)); null counts voxels",
        ),
        "distance_transform": ("object", "operator of the distance maps: exact, cascaded or generalised"),
        "segmentation_to_distance": ("object", "mask to signed distance map, differentiable"),
        "distance_to_segmentation": ("object", "signed distance map to mask, a steep sigmoid"),
        "amp": (
            "boolean or text",
            "mixed precision on a GPU, also of evaluation and inference: true (bfloat16 where the card has it), "
            "`bfloat16` or `float16`",
        ),
        "amp_options": ("object", "what autocast needs to know, from `amp` and `device`"),
        "device": ("object", "`cuda` where there is a GPU; `\"$torch.device('cpu')\"` keeps it on the CPU"),
        "val_interval": ("integer", "epochs between two validations"),
        "epoch_length": ("object", "iterations of an epoch: the largest divisor of `max_iterations` up to 100"),
        "num_epochs": ("expression", "follows from the two above"),
        "log_interval": ("integer", "iterations between two rows of `training_log.csv`"),
        "picture_interval": (
            "integer",
            "iterations between two pictures of the crops ([training.md](training.md)); 0: none",
        ),
        "non_finite_loss": (
            "text",
            "what happens when the loss is not finite: `stop`, or `skip` the batch ([training.md](training.md))",
        ),
        "worker_timeout": ("integer", "seconds to wait for a data worker before the run ends with an error"),
        "gradient_norm_interval": ("integer", "iterations between two measurements of each term's gradient; 0: never"),
        "checkpoint_interval": ("integer", "iterations between two checkpoints ([resume](how_to/resume_a_run.md))"),
        "resume": ("text", "`auto` continues the run in `output_dir` where it stopped, `never` starts anew"),
        "run_preflight": ("boolean", "checks the data before training ([preflight.md](preflight.md))"),
    },
    "Tracking": {
        "mlflow": (
            "boolean",
            "records the training in MLflow ([track](how_to/track_with_mlflow.md)); `--tracking mlflow` sets it",
        ),
        "tensorboard": ("boolean", "writes the logs for TensorBoard into `output_dir/tensorboard`"),
        "tracking_uri": ("object", "store of MLflow, or its address; the variable MLFLOW_TRACKING_URI goes before it"),
        "experiment_name": ("text", "under which MLflow lists the run"),
        "run_name": ("text or null", "name of the run in MLflow; null takes that of the folder `output_dir`"),
        "save_execute_config": ("boolean", "MONAI's: whether its own tracking writes the config into a file"),
        "merged_config": ("map or null", "filled when a command runs: the whole config, for `run.json` and tracking"),
    },
    "Evaluation and inference": {
        "stride": ("3 integers", "voxels between two windows; smaller is slower and smoother"),
        "sw_batch_size": (
            "object",
            "windows that go through the network together, an integer; chosen from the free memory, 4 at most",
        ),
        "evaluation_list": (
            "text",
            "which cases are evaluated: `test`, or `validation` to choose by ([protocol.md](protocol.md))",
        ),
        "surface_tolerance": ("number", "mm, of the surface Dice ([metrics.md](metrics.md))"),
        "save_probability": ("boolean", "writes `<case>_probability.nii.gz`"),
        "save_distance": ("boolean", "writes `<case>_distance.nii.gz`"),
        "save_uncertainty": ("boolean", "writes `<case>_uncertainty.nii.gz`"),
        "save_volumes": ("boolean", "writes `volumes.csv`"),
        "largest_component": ("boolean", "keeps the largest part of every class"),
        "preview": ("boolean", "draws every case with its contours and writes `preview.html`; needs matplotlib"),
        "decoders": ("text", "`both`, `phi` or `psi`"),
        "heads": (
            "text",
            "of these decoders, `segmentation`, `distance` or `all`: whose probabilities make the mask",
        ),
        "threshold": ("number", "probability above which a voxel is foreground, or a list with one for each class"),
        "flip_axes": ("list of integers", "axes, 0 to 2, over whose mirror images is averaged"),
        "overwrite": ("boolean", "segments everything anew; false goes on where a run stopped"),
        "share": (
            "text or null",
            "`3/64`: the third of 64 parts of the cases, for jobs that fill one folder ([inference.md](inference.md))",
        ),
        "networks": ("object", "one copy of the network per file of `ckpt_path`"),
        "maps": ("object", "further outputs, from `save_distance` and `save_uncertainty`"),
        "preprocessing": ("object", "transforms of a volume; their inverse brings the prediction back"),
        "root": ("object", "the folder below which outputs keep the place of their image"),
        "cases": ("object", "the volumes of `input_dir`"),
        "record": ("object", "settings, weights and images of the masks in `output_dir`, and what is left to do"),
        "run_digest": ("text or null", "of the training that the weights are from, which writes it into `model.json`"),
        "dataset": ("object", "the volumes that are not segmented yet"),
        "dataloader": ("object", "one volume at a time; a broken one becomes a row of `failures.csv`"),
        "inferer": ("object", "sliding window; memory: [little_memory.md](how_to/little_memory.md)"),
        "postprocessing": ("object", "inverse of the preprocessing, maps, mask, files"),
        "handlers": ("list", "loads the weights"),
        "evaluator": ("object", "runs network and transforms over the volumes"),
    },
    "What can be run": {
        "training": ("list", "`run training`: preflight, then training or its continuation"),
        "evaluation": (
            "list",
            "`run evaluation`, with `configs/evaluate.json` last: the final weights on `evaluation_list`",
        ),
        "inference": ("list", "`run inference`, with `configs/inference.json`"),
        "preflight": ("list", "`run preflight`, with `configs/preflight.json`: the checks alone"),
        "run": (
            "list",
            "the same under the name that MONAI's clients call; in train.json without preflight and resume",
        ),
        "initialize": ("list", "done before `run` and `training`: seeds"),
        "preflight_checks": ("object", "the checks and their arguments, such as `preflight_checks#workers`"),
        "train": ("map", "parts of the training, see below"),
        "validate": ("map", "parts of the validation; `configs/evaluate.json` turns them into the evaluation's"),
        "imports": ("list", "modules for the `$` expressions"),
        "about": ("text", "what the file is for; read by people alone"),
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
        "trainer": "joins both batches, runs network and objective",
        "dataset": "cached labeled cases; `train#dataset#cache_rate` below 1 caches a part",
        "dataloader": "endless stream of labeled crops",
        "preprocessing": "load, crop, augment, cut to the patch",
        "inferer": "one forward pass",
        "handlers": "validation, weights, `model.json`, log, learning rate, checkpoints",
        "load_transforms": "file to normalised volume; cached",
        "crop_transforms": "pad and crop, labeled",
        "fit_transforms": "cut to the patch",
        "unlabeled_crop_transforms": "pad and crop, unlabeled; never sees a label",
        "unlabeled_preprocessing": "as `preprocessing`, unlabeled",
        "labeled_cases": "the first `num_labeled`, checked",
        "unlabeled_cases": "all others, images alone, checked",
        "pseudo_cases": "those with pseudo-labels, if `pseudo_batch_size` is not 0; checked",
        "pseudo_dataset": "cached cases with pseudo-labels",
        "pseudo_dataloader": "endless stream of crops with pseudo-labels",
        "unlabeled_dataset": "cached unlabeled cases",
        "unlabeled_dataloader": "endless stream of unlabeled crops",
        "inference_overlay": "the settings that are written beside the weights",
        "data": "the lists whose digest is recorded",
        "description": "what `run.json` says of a start",
        "run_state": "what a checkpoint holds, and the settings that must not change on the way",
    },
    "validate": {
        "evaluator": "runs network, windows and metrics",
        "dataset": "validation cases; in evaluation those of `evaluation_list`",
        "dataloader": "one case at a time",
        "inferer": "sliding window, overlap of a quarter; in evaluation by `stride`",
        "preprocessing": "the transforms below",
        "postprocessing": "mask; in evaluation back in the image's geometry, and saved",
        "handlers": "`model_best.pt`; in evaluation the weights, metrics and tables",
        "key_metric": "mean Dice, which selects `model_best.pt`",
        "load_transforms": "as in training; in evaluation the label stays on its own grid",
        "tolerant_dataset": "lets a broken case fail alone (evaluation)",
    },
}
