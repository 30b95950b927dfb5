"""Real runs, and what the night does to them: `python -m tests.faults --help`."""
