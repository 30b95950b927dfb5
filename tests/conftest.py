import jax
import pytest

# Two devices, so that every test of a step or a stage is a test of data parallelism.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """For mathematics: a float64 or an int that slips in is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield
