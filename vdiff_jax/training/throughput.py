"""The speed of a run, and the share of its devices' peak that it reaches."""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

# Dense bfloat16 peaks in FLOP/s, from the makers' data sheets, by a part of JAX's name
# for the device. The first that fits counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,  # float16: it has no bfloat16
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
}

# Names of all measures that there may be.
MEASURES = (
    "images_per_second",
    "updates_per_second",
    "device_memory_gib",
    "model_flops_utilization",
)


def peak_flops(device: Any) -> float | None:
    """A device's dense bfloat16 peak in FLOP/s, or None if it is not known."""
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in device.device_kind]
    return peaks[0] if peaks else None


def memory_in_gib(device: Any) -> float | None:
    """The most memory that was in use on a device, or None if it keeps no count."""
    statistics = device.memory_stats() or {}
    most = statistics.get("peak_bytes_in_use")
    return None if most is None else most / 2**30


class Throughput:
    """Speed of the updates alone: no compiling, evaluating or saving."""

    def __init__(self, batch_size: int, flops_per_image: float = 0.0):
        """Starts the clock.

        Args:
          batch_size: Images of an update.
          flops_per_image: The model's work for an image of an update, in FLOP; 0 if not
            known.
        """
        self._batch_size, self._flops_per_image = batch_size, flops_per_image
        self._updates, self._seconds = 0, 0.0
        self._all_updates, self._began = 0, time.monotonic()
        self._since: float | None = None

    def add(self, updates: int) -> None:
        """Counts updates that have just ended; the first after a pause do not count."""
        now = time.monotonic()
        self._all_updates += updates
        if self._since is not None:
            self._updates += updates
            self._seconds += now - self._since
        self._since = now

    def pause(self) -> None:
        """Leaves out the time until updates end again."""
        self._since = None

    def updates_per_second(self) -> float:
        """The mean so far; of a run too short to count, with all that it waited for."""
        if self._seconds:
            return self._updates / self._seconds
        return self._all_updates / (time.monotonic() - self._began)

    def measures(self) -> dict[str, float]:
        """Metrics of the speed and of the devices, by name; those not known are absent.

        `model_flops_utilization` is the model's work per second over the bfloat16 peak
        of the devices, whatever the network computes in.
        """
        updates = self.updates_per_second()
        images = updates * self._batch_size
        metrics = {"images_per_second": images, "updates_per_second": updates}
        device = jax.local_devices()[0]
        memory, peak = memory_in_gib(device), peak_flops(device)
        if memory is not None:
            metrics["device_memory_gib"] = memory
        if peak is not None and self._flops_per_image:
            flops = images * self._flops_per_image
            metrics["model_flops_utilization"] = flops / (peak * jax.device_count())
        return metrics


class Profile:
    """A trace of some updates for `tensorboard` or Perfetto, taken once in a run."""

    def __init__(self, updates: int):
        """Waits for the first call that may be traced.

        Args:
          updates: Number of updates to trace, rounded up to whole calls; 0 for none.
        """
        self._left = updates
        self._tracing = False

    @contextlib.contextmanager
    def trace(
        self, folder: pathlib.Path, updates: int, *, counts: bool
    ) -> Iterator[list[Any]]:
        """Traces a call, if it is among those to trace.

        Args:
          folder: The trace goes to its `profile/`.
          updates: Number of updates of this call.
          counts: True if this call may be traced: not one that compiles.

        Yields:
          A list for arrays of the call; the trace's end waits for them.
        """
        watched: list[Any] = []
        if counts and self._left > 0 and not self._tracing:
            jax.profiler.start_trace(folder / "profile")
            self._tracing = True
        yield watched
        if self._tracing:
            self._left -= updates
            if self._left <= 0:
                jax.block_until_ready(watched)
                self.stop()

    def stop(self) -> None:
        """Ends a trace that is under way, as when a run ends first."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing, self._left = False, 0
