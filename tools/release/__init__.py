"""Release: packs the bundle for the Model Zoo and for those who download it."""
