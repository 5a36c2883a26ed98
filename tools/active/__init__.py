"""Active learning: which unlabeled cases to label next, corrections of proposals, and what further labels bring."""
