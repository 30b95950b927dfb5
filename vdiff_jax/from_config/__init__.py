"""From a config to objects: a module for each kind of thing that a config describes."""
