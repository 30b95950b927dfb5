"""Prepares images once, in files that read fast; the command is __main__.py."""
