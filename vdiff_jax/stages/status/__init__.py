"""The state of every stage of a project, for who only looks.

Nothing is written or locked, and no device is started. It is ready in the time that
`import jax` takes: a config file needs the table of fields, whose ranges name the
methods and the networks, and these import JAX. Orbax, torch and matplotlib, which take
longer, are not imported here.
"""
