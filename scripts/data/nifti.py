"""NIfTI: opens a file only if its header is plausible, so that a damaged file gives an error and fills no memory.

Which affine counts is nibabel's rule: the sform if sform_code is above 0, else the qform if qform_code is above 0, else
the voxel sizes alone with the origin in the middle of the volume.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from monai.config import PathLike
from monai.data import NibabelReader
from nibabel import imageglobals
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import apply_read_scaling, array_from_file

from .machine import total_memory
from .problems import FileError, Problem

COPY = "copy the file again"
GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
# Deflate cannot shrink data further than to 1/1032 (zlib's documentation); the constant is for short files.
MOST_COMPRESSION, SHORT_FILE = 1040, 65536
# A voxel is thinner than this fraction of its longest edge only if the affine is singular.
FLAT = 1e-6
# nibabel switches its logging off for all threads at once.
_QUIET = threading.Lock()


@dataclass(frozen=True)
class Header:
    """The header of a usable file.

    Args:
        path: of the file.
        shape: of the voxels, three or more axes.
        affine: (4, 4), float64, mm, voxel to world.
        pixdim: the header's own three voxel sizes, not those of the affine.
        units: of pixdim and affine: 0 unknown, 1 metre, 2 millimetre, 3 micrometre.
        sform_code, qform_code: 0 if the header does not have that affine.
        qform: (4, 4), float64, mm; None if qform_code is 0.
    """

    path: str
    shape: tuple[int, ...]
    affine: np.ndarray
    pixdim: tuple[float, ...]
    units: int
    sform_code: int
    qform_code: int
    qform: np.ndarray | None

    @property
    def channels(self) -> int:
        """Number of channels, on the fourth axis; 1 without it."""
        return self.shape[3] if len(self.shape) == 4 else 1

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (3,), mm, from the affine."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def open_nifti(path: str) -> tuple[Header, SpatialImage]:
    """The header of a file, and the file as nibabel opens it, before any voxel is read.

    Raises:
        FileError: when it is missing or not a file, is not NIfTI, or its header cannot be true.
    """
    raw, size, compressed = _raw_header(path)
    _check_raw(path, raw, size, compressed)
    try:
        with _QUIET, imageglobals.LoggingOutputSuppressor():  # what it would log is checked here
            opened: Any = nibabel.load(path)
            qform = opened.get_qform(coded=True)[0]
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises any of several types for a damaged header
        raise _not_nifti(path, _said(error)) from error
    header = Header(
        path=path,
        shape=tuple(int(n) for n in opened.shape),
        affine=np.asarray(opened.affine, dtype=float),
        pixdim=tuple(float(p) for p in raw["pixdim"][1:4]),
        units=int(raw["xyzt_units"]) & 7,
        sform_code=int(raw["sform_code"]),
        qform_code=int(raw["qform_code"]),
        qform=qform,
    )
    _check_affine(header)
    return header, opened


def stored_voxels(opened: SpatialImage, path: str) -> np.ndarray:
    """The stored values of a file, before slope and intercept are applied, in the file's data type.

    An archive is read one byte past them, to its end, where its checksum is compared; nibabel stops before it, and a
    damaged archive would go unnoticed.
    """
    proxy: Any = opened.dataobj  # nibabel annotates it as any array
    if not path.lower().endswith(".gz"):
        return proxy.get_unscaled()
    with gzip.open(path, "rb") as file:
        voxels = array_from_file(proxy.shape, proxy.dtype, file, proxy.offset, order="F")
        file.read(1)
    return voxels


def unreadable(path: str, error: BaseException) -> FileError:
    """The error for a file whose header is good and whose voxels cannot be read."""
    return _error("truncated", path, f"cannot be read ({_said(error)})")


class NiftiReader(NibabelReader):
    """MONAI's NIfTI reader with the checks of :func:`open_nifti` and the affine that nibabel gives.

    MONAI's own replaces an sform by the qform where the sform's voxel sizes differ from pixdim, so that a mask would be
    written to another place than the one where viewers and nibabel show its image.
    """

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        paths = [str(data)] if isinstance(data, (str, os.PathLike)) else [str(path) for path in data]
        self.filenames = paths
        try:
            opened = [open_nifti(path)[1] for path in paths]
        except FileError as error:
            if not self.verify_suffix(paths):
                raise  # another of MONAI's readers may know the format
            return error  # raised in get_data: after an error in read MONAI would let other readers try
        return opened if len(opened) > 1 else opened[0]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        if isinstance(img, FileError):
            raise img
        return super().get_data(img)

    def _get_array_data(self, img: Any, filename: str) -> np.ndarray:
        try:
            stored = stored_voxels(img, str(filename))
        except MemoryError:
            raise
        except Exception as error:  # a truncated archive raises any of several types
            raise unreadable(str(filename), error) from error
        scaled = apply_read_scaling(stored, np.float64(img.dataobj.slope), np.float64(img.dataobj.inter))
        return np.asarray(scaled, order="C")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _error(check: str, path: str, what: str, remedy: str = COPY) -> FileError:
    return FileError(Problem(check, path, what, remedy))


def _not_nifti(path: str, why: str) -> FileError:
    return _error("format", path, f"is not a readable NIfTI file ({why})", f"export it again as NIfTI, or {COPY}")


def _raw_header(path: str) -> tuple[Any, int, bool]:
    """The raw header, the file's size in bytes, and whether the file is compressed."""
    size = _size_of_regular(path)
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
        if compressed != path.lower().endswith(".gz"):
            if compressed:
                raise _error("format", path, "is compressed", "rename it to end in .nii.gz")
            raise _not_nifti(path, "not a gzip file although its name ends in .gz")
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            block = file.read(HEADER_BYTES)
    except PermissionError as error:
        raise _error("file", path, f"may not be opened ({_said(error)})", "change its permissions") from error
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    nifti2 = 540 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    kind, length = (nibabel.Nifti2Header, 540) if nifti2 else (nibabel.Nifti1Header, 348)
    if len(block) < length:
        raise _not_nifti(path, f"{len(block)} bytes, and a header alone has {length}")
    raw = kind(block[:length], check=False)
    magic = bytes(raw["magic"])
    if magic[:3] in (b"ni1", b"ni2"):
        raise _error("format", path, "is the header of a pair of files", "save it as one file, .nii or .nii.gz")
    if magic[:3] not in (b"n+1", b"n+2"):
        raise _not_nifti(path, f"its magic is {magic.rstrip(bytes(1))!r}")
    return raw, size, compressed


def _size_of_regular(path: str) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise _error("file", path, "does not exist", "correct dataset.json or dataset_dir") from None
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or has a null byte
        raise _error("file", path, f"cannot be opened ({_said(error)})", "correct the path or the link") from error
    if stat.S_ISDIR(status.st_mode):
        raise _error("file", path, "is a folder", "name the file, which is perhaps inside")
    if not stat.S_ISREG(status.st_mode):
        raise _error("file", path, "is not a regular file", "copy its content to one")
    if status.st_size == 0:
        raise _error("file", path, "is empty")
    return status.st_size


def _check_raw(path: str, raw: Any, size: int, compressed: bool) -> None:
    """Raises for a header that a file of ``size`` bytes cannot have, before any memory is allocated for it."""
    axes = int(raw["dim"][0])
    shape = tuple(int(n) for n in raw["dim"][1 : axes + 1])
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise _not_nifti(path, f"its header has the shape {shape} in {axes} axes")
    if axes not in (3, 4):
        remedy = "images are 3D, or 4D with the channels last; save each volume as one 3D file"
        raise _error("shape", path, f"has shape {shape}", remedy)
    try:
        dtype = raw.get_data_dtype()
    except Exception as error:  # nibabel's errors for data types that it or numpy does not know
        raise _not_nifti(path, f"unknown data type, {_said(error)}") from error
    if dtype.kind not in "iuf":
        raise _error("format", path, f"has voxels of the type {dtype}", "save one number per voxel, not colours")
    bits, offset = int(raw["bitpix"]), float(raw["vox_offset"])
    if bits not in (0, 8 * dtype.itemsize):  # 0: left out
        raise _not_nifti(path, f"its header says {bits} bits per voxel and the data type {dtype}")
    if not float(raw.single_vox_offset) <= offset < 2**62:  # also refuses NaN
        raise _not_nifti(path, f"its header has the vox_offset {offset:g}")
    needed = int(offset) + math.prod(shape) * dtype.itemsize
    if needed > (MOST_COMPRESSION * size + SHORT_FILE if compressed else size):
        has = f"{size:,} compressed" if compressed else f"{size:,}"
        what = f"cannot be read: its header announces {needed:,} bytes, shape {shape}, and the file has {has}"
        raise _error("truncated", path, what)
    memory, floats = total_memory(), math.prod(shape) * 4
    if memory is not None and floats > memory:
        what = f"has shape {shape} and needs {floats / 1e9:.1f} GB of {memory / 1e9:.1f} GB memory"
        raise _error("memory", path, what, "cut or resample it, or use a larger machine")


def _check_affine(header: Header) -> None:
    if header.sform_code <= 0 and not all(math.isfinite(p) and p != 0 for p in header.pixdim):
        what = f"has the voxel sizes {header.pixdim} and no sform that would replace them"
        raise _error("spacing", header.path, what, "write the true spacing (mm) into its header")
    matrix, edges = header.affine, header.spacing
    what = ""
    if not np.isfinite(matrix).all():
        what = "has an affine that is not finite"
    elif edges.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / edges)) < FLAT:
        what = f"has a singular affine with the columns {matrix[:3, :3].T.round(4).tolist()}"
    if what:
        raise _error("affine", header.path, what, "write a true affine into its header")
