"""Many images from a model: the sampler, batches, grids, and what lies between."""
