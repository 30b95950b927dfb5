"""Folders of diffusers, read and written."""
