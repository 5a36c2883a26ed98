"""Comparison: methods, numbers of labels, draws and seeds from a plan, run, collected and tested against a baseline."""
