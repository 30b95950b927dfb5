"""The folder of a project: where things lie, and what is finished in it."""
