"""Distance: the differentiable bidirectional task transformer between segmentation and signed distance maps.

Segmentation -> distance (T_s2r, DBiSL Eq. 2-5) is :class:`SegmentationToDistance` over one of two distance
transforms; distance -> segmentation (T_r2s, Eq. 1) is :class:`DistanceToSegmentation`.
"""

from .cascade import CascadedDistance
from .exact import ExactDistance
from .signed_distance import SegmentationToDistance
from .steep_sigmoid import DistanceToSegmentation

__all__ = ["CascadedDistance", "DistanceToSegmentation", "ExactDistance", "SegmentationToDistance"]
