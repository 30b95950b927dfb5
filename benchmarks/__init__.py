"""Measurements, each of which anyone can run."""
