"""Data: sources of pictures, and the loader that turns one into batches."""
