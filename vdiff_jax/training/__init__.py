"""How a network is trained: the step, the loop, and what a run leaves and survives."""
