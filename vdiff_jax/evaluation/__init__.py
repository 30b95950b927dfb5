"""Evaluation: feature extractors, distances between sets of features, reports."""
