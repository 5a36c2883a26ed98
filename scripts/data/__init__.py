"""Data: the case list, its checks, the transforms, and the random streams of labeled and unlabeled crops."""

from __future__ import annotations

from .batch_augmentation import RandomIntensity
from .box import foreground_box
from .checks import check_cases, images_of, kept_apart
from .datalist import Datalist
from .folder import case_name, images_in
from .label_coding import LabelCoding
from .laterality import side_kept
from .nifti import NiftiReader
from .problems import DataError, Problem
from .stream import crop_stream
from .transforms import (
    DecodeProbabilitiesd,
    EncodeLabelsd,
    IntensityWindowd,
    KnownOnlyd,
    MarkUnknownd,
    PreGeneratedMapd,
    RandomCropd,
    SpacingOfKeysd,
    crop_size,
)
from .volumes import VolumeDataset

__all__ = [
    "DataError",
    "Datalist",
    "DecodeProbabilitiesd",
    "EncodeLabelsd",
    "IntensityWindowd",
    "KnownOnlyd",
    "LabelCoding",
    "MarkUnknownd",
    "NiftiReader",
    "PreGeneratedMapd",
    "Problem",
    "RandomCropd",
    "RandomIntensity",
    "SpacingOfKeysd",
    "VolumeDataset",
    "case_name",
    "check_cases",
    "crop_size",
    "crop_stream",
    "foreground_box",
    "images_in",
    "images_of",
    "kept_apart",
    "side_kept",
]
