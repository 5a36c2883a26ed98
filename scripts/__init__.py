"""DBiSL bundle: semi-supervised 3D segmentation with segmentation and distance as two tasks of one network."""
