"""Preparation: from folders of volumes to a dataset.json, a plan, and the papers' benchmarks."""
