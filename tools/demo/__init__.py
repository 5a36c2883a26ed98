"""Demonstration: synthetic data that are made in seconds, and figures of what a trained network sees in them."""
