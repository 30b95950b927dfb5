"""Many images from a model: the sampler, batches, grids, trajectories."""
