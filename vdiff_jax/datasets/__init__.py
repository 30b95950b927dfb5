"""Data: sources of images, and the loader that turns one into batches."""
