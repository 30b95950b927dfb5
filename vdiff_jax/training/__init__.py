"""Training of a network: the step, the loop, checkpoints, records and interrupts."""
