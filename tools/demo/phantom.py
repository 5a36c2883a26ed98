"""Phantom: a small synthetic "left atrium" MR volume and its label, determined by a seed and a number.

A volume is a thorax in miniature (about 70 x 70 x 64 mm). The object is a left atrium: a deformed superellipsoid with
three to five tapering pulmonary veins and an appendage. The other chambers and the great vessels hold the same blood
and have no label, so intensity alone does not find the object: position and shape do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.spatial.transform import Rotation

SPACING = (1.25, 1.25, 2.0)  # mm

# Blood-filled distractors, in mm from the centre of the atrium: x to the patient's left, y to the front, z to the head.
# (centre, semi-axes)
CHAMBERS = (
    ((8.0, 14.0, -11.0), (8.0, 7.0, 11.0)),  # left ventricle
    ((-3.0, 19.0, -9.0), (10.0, 5.0, 10.0)),  # right ventricle
    ((-13.0, 9.0, -4.0), (6.5, 6.5, 10.0)),  # right atrium
)
# (start, bend, end, radius)
VESSELS = (
    ((9.0, -13.5, -50.0), (10.0, -12.5, 0.0), (8.0, -13.5, 50.0), 3.4),  # descending aorta
    ((-1.0, 12.0, -2.0), (-4.0, 13.0, 14.0), (1.0, 9.0, 50.0), 3.9),  # ascending aorta
    ((-12.0, 9.0, 2.0), (-11.0, 9.0, 20.0), (-9.0, 8.0, 50.0), 2.8),  # superior vena cava
    ((4.0, 18.0, 0.0), (10.0, 6.0, 30.0), (-17.0, 0.0, 17.0), 2.9),  # pulmonary artery, across the roof of the atrium
)


# --- shapes ---
# A shape is a level: (H, W, D), float64, negative inside, in mm close to the surface.


def superellipsoid(points: np.ndarray, *, centre: ArrayLike, semi_axes: ArrayLike, exponent: float = 2.0) -> np.ndarray:
    """Level (H, W, D) of sum |x_i / a_i|^exponent = 1 at ``points`` (3, H, W, D); exponent 2 is an ellipsoid."""
    middle, radii = (np.reshape(v, (3, 1, 1, 1)) for v in (centre, semi_axes))
    radius = (np.abs((points - middle) / radii) ** exponent).sum(axis=0) ** (1.0 / exponent)
    return (radius - 1.0) * radii.min()


def tube(points: np.ndarray, *, path: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Level (H, W, D) of a tube along the polyline ``path`` (N, 3), mm, with ``radii`` (N,), mm, at its corners."""
    level = np.full(points.shape[1:], np.inf)
    for start, end, first, last in zip(path[:-1], path[1:], radii[:-1], radii[1:]):
        axis = end - start
        offset = points - start.reshape(3, 1, 1, 1)
        along = np.clip(np.tensordot(axis, offset, axes=1) / (axis @ axis), 0.0, 1.0)
        distance = np.sqrt(((offset - axis.reshape(3, 1, 1, 1) * along) ** 2).sum(axis=0))
        level = np.minimum(level, distance - (first + (last - first) * along))
    return level


def curve(start: ArrayLike, bend: ArrayLike, end: ArrayLike, *, count: int = 7) -> np.ndarray:
    """Quadratic Bezier curve (count, 3) from ``start`` to ``end``, drawn towards ``bend``."""
    t = np.linspace(0.0, 1.0, count)[:, None]
    return (1 - t) ** 2 * np.asarray(start) + 2 * t * (1 - t) * np.asarray(bend) + t**2 * np.asarray(end)


def smooth_union(levels: Sequence[np.ndarray], *, fillet: float) -> np.ndarray:
    """Union of levels (H, W, D) whose creases are rounded over about ``fillet`` mm: a vein opens like a funnel."""
    return -fillet * np.logaddexp.reduce([-level / fillet for level in levels])


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], *, length: float) -> np.ndarray:
    """Random field of ``shape`` (H, W, D) with mean 0, variance 1 and correlation length ``length`` in mm."""
    # "wrap" gives the border the same variance as the middle
    field = ndimage.gaussian_filter(rng.standard_normal(shape), [length / s for s in SPACING], mode="wrap")
    return (field - field.mean()) / field.std()


def coverage(level: np.ndarray) -> np.ndarray:
    """Part of each voxel that lies inside the shape: (H, W, D), [0, 1]; this is the partial-volume effect.

    The level is divided by its gradient, which makes it a distance to first order, also where a warp has stretched it.
    """
    slope = np.sqrt(sum(g**2 for g in np.gradient(level)))  # per voxel, so the distance is in voxels too
    return np.clip(0.5 - level / np.maximum(slope, 1e-6), 0.0, 1.0)


# --- anatomy ---


def voxel_centres(shape: Sequence[int]) -> np.ndarray:
    """Positions (3, H, W, D) of the voxels in mm from the centre of the field of view."""
    return np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, SPACING)], indexing="ij"))


def pose(points: np.ndarray, *, rng: np.random.Generator, degrees: float, shift: float, stretch: float) -> np.ndarray:
    """``points`` (3, H, W, D) in a frame that is turned, moved (mm) and stretched (per axis) at random."""
    turn = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
    factor = rng.uniform(1 - stretch, 1 + stretch, 3)
    moved = points - rng.uniform(-shift, shift, 3).reshape(3, 1, 1, 1)
    return np.tensordot(turn / factor[:, None], moved, axes=1)


def atrium(points: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Level (H, W, D) of the object in the heart's frame ``points`` (3, H, W, D): body, veins and appendage."""
    semi_axes = rng.uniform((12.5, 8.5, 12.0), (16.5, 11.0, 17.0))
    body = superellipsoid(points, centre=(0, 0, 0), semi_axes=semi_axes, exponent=rng.uniform(2.0, 3.0))
    # (side, height) of each vein: four as a rule, a common left trunk in place of two, or a middle one on the right
    layouts = (
        ((1, 0.0), (-1, 0.5), (-1, -0.5)),
        ((1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5)),
        ((1, 0.5), (1, -0.5), (-1, 0.6), (-1, 0.0), (-1, -0.6)),
    )
    parts = [body]
    for side, height in layouts[rng.choice(3, p=(0.2, 0.55, 0.25))]:
        start = semi_axes * (0.65 * side, -0.25, height)
        end = start + rng.uniform((8, -8, -2), (12, -2, 4)) * (side, 1, np.sign(height) or 1)
        path = curve(start, (start + end) / 2 + rng.uniform(-3, 3, 3), end)
        radii = np.linspace(rng.uniform(2.8, 4.0), rng.uniform(1.2, 1.8), len(path))
        parts.append(tube(points, path=path, radii=radii))
    start = semi_axes * (0.6, 0.5, 0.2)
    end = start + rng.uniform((5, 5, -3), (9, 10, 6))
    path = curve(start, (start + end) / 2 + rng.uniform((0, -4, -3), (4, 0, 3)), end)  # the appendage
    parts.append(tube(points, path=path, radii=rng.uniform(0.8, 1.2) * np.linspace(2.6, 2.0, len(path))))
    return smooth_union(parts, fillet=0.8)


def distractors(points: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Level (H, W, D) of everything that is filled with the atrium's blood but is not the atrium."""
    levels = []
    for centre, semi_axes in CHAMBERS:
        moved, sized = rng.normal(centre, 1.0), semi_axes * rng.uniform(0.85, 1.2, 3)
        levels.append(superellipsoid(points, centre=moved, semi_axes=sized, exponent=rng.uniform(2.0, 2.8)))
    for *corners, radius in VESSELS:
        path = curve(*(rng.normal(corner, 1.0) for corner in corners))
        levels.append(tube(points, path=path, radii=np.full(len(path), radius * rng.uniform(0.8, 1.2))))
    return np.minimum.reduce(levels)


def tissue_values(rng: np.random.Generator) -> dict[str, float]:
    """The contrast of one scan: the signal of each tissue, relative to the range of the receiver."""
    blood = rng.uniform(0.55, 1.0)
    return {
        "blood": blood,
        "muscle": blood * rng.uniform(0.45, 0.75),
        "fat": rng.uniform(0.45, 1.1),
        "marrow": rng.uniform(0.3, 0.8),
        "fluid": rng.uniform(0.1, 0.5),
        "liver": rng.uniform(0.25, 0.6),
        "lung": rng.uniform(0.06, 0.16),
    }


def thorax(shape: Sequence[int], *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One patient: the noiseless signal (H, W, D), float64, about [0, 1], and the label (H, W, D), uint8, {0, 1}."""
    value = tissue_values(rng)
    points = pose(voxel_centres(shape), rng=rng, degrees=8, shift=2.5, stretch=0.08)
    points = points + 1.2 * np.stack([smooth_noise(rng, shape, length=8.0) for _ in range(3)])
    heart = pose(points - np.reshape((1.0, -3.0, 2.0), (3, 1, 1, 1)), rng=rng, degrees=12, shift=2.0, stretch=0.1)
    heart = heart + 0.6 * np.stack([smooth_noise(rng, shape, length=4.0) for _ in range(3)])

    torso = superellipsoid(points, centre=(0, 0, 0), semi_axes=(31, 27, 900), exponent=2.6)
    lungs = np.minimum(*(superellipsoid(points, centre=(19 * s, -1, 4), semi_axes=(10, 17, 40)) for s in (1, -1)))
    bronchi = 1.9 - smooth_noise(rng, shape, length=1.5)  # small vessels in the lungs
    liver = superellipsoid(points, centre=(-12, 2, -38), semi_axes=(19, 19, 22))
    spine = tube(points, path=np.array([(0.0, -17.0, -60.0), (0.0, -16.0, 60.0)]), radii=np.array([5.0, 5.0]))
    canal = tube(points, path=np.array([(0.0, -23.0, -60.0), (0.0, -22.0, 60.0)]), radii=np.array([2.2, 2.2]))
    trachea = tube(points, path=np.array([(0.0, -7.5, 24.0), (0.0, -8.5, 60.0)]), radii=np.array([2.6, 2.6]))
    pericardium = superellipsoid(heart, centre=(1, 10, -6), semi_axes=(19, 14, 21), exponent=2.3)
    blood, chamber = distractors(heart, rng=rng), atrium(heart, rng=rng)
    wall = rng.uniform(0.6, 1.5)  # mm; about a voxel, and often no more than a faint line after the blur

    signal = np.zeros(shape)
    for level, tissue in (
        (torso, "fat"),
        (torso + 3.0, "muscle"),
        (np.maximum(lungs, torso + 5.0), "lung"),
        (np.maximum(np.maximum(lungs, torso + 5.0), bronchi), "blood"),
        (np.maximum(liver, torso + 5.0), "liver"),
        (spine, "lung"),  # cortical bone is as dark as air
        (spine + 1.0, "marrow"),
        (canal, "fluid"),
        (trachea, "lung"),
        (pericardium - rng.uniform(1.0, 2.5), "fat"),
        (pericardium, "muscle"),
        (blood - wall, "muscle"),
        (blood, "blood"),
        (chamber - wall, "muscle"),
        (chamber, "blood"),
    ):
        signal += coverage(level) * (value[tissue] - signal)
    components, _ = ndimage.label(chamber < 0)
    largest = np.bincount(components.ravel())[1:].argmax() + 1  # a vein that thins out may leave a crumb behind
    return signal, (components == largest).astype(np.uint8)


def acquire(signal: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """The scan of ``signal`` (H, W, D) as int16: after coil sensitivity, point-spread blur and Rician noise."""
    texture = 1 + 0.05 * smooth_noise(rng, signal.shape, length=2.0)
    sensitivity = np.exp(rng.uniform(0.1, 0.25) * smooth_noise(rng, signal.shape, length=25.0))
    blurred = ndimage.gaussian_filter(signal * texture * sensitivity, [rng.uniform(0.7, 1.1) / s for s in SPACING])
    noise = rng.uniform(0.03, 0.07) * rng.standard_normal((2, *signal.shape))
    return np.rint(rng.uniform(300, 1200) * np.hypot(blurred + noise[0], noise[1])).astype(np.int16)


def simulate_volume(*, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes volume ``index`` of the series ``seed``.

    Returns:
        image (H, W, D), int16, arbitrary units >= 0; label (H, W, D), uint8, {0, 1}, one connected component;
        affine (4, 4), float64, mm, to RAS space. The first array axis runs to the patient's left: an axial slice shown
        transposed, origin below, is what radiologists are used to, and software that ignores affines is found out.
    """
    rng = np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(index,)))
    shape = tuple(int(n) for n in rng.integers((52, 52, 29), (61, 61, 36)))
    affine = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = np.round(rng.uniform(-120, 120, 3), 2)
    signal, label = thorax(shape, rng=rng)
    return acquire(signal, rng=rng), label, affine
