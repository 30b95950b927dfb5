"""The stages of a project: each reads a config and a workdir, and writes the workdir.

A stage module has `run(config, workdir)`, and `plan(config, workdir)`, which says what
`run` would do and starts nothing.
"""
