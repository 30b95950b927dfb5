"""How a student learns: a module for each method."""
