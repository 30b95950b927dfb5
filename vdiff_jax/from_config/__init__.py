"""Objects from a config: a module for each kind of thing that a config describes."""
