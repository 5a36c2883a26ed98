"""DBiSL bundle: networks, distance transforms, objectives, training, data and evaluation for semi-supervised segmentation."""
