"""The stage that draws images."""
