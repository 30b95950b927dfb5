"""Models of other projects in, ours out: names, files and conventions."""
