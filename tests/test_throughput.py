import types

import jax
import pytest

import tiny
from configs import cifar10, imagenet64
from vdiff_jax.from_config.model import make_model
from vdiff_jax.nets import attention
from vdiff_jax.training import throughput


class _Device(types.SimpleNamespace):
    def memory_stats(self):
        return {"peak_bytes_in_use": 3 * 2**30}


def test_speed_is_that_of_the_updates_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    meter = throughput.Throughput(batch_size=8)
    for seconds in (5.0, 1.0, 1.0):  # the first waited for the compiler
        now[0] += seconds
        meter.add(10)
    meter.pause()
    now[0] += 100.0
    meter.add(10)
    assert meter.measures()["updates_per_second"] == pytest.approx(10.0)
    assert meter.measures()["images_per_second"] == pytest.approx(80.0)


def test_utilization_is_the_models_work_over_the_devices_peak(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    device = _Device(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    meter = throughput.Throughput(batch_size=100, flops_per_image=989e12 / 100)
    meter.add(1)
    now[0] += 4.0
    meter.add(4)
    measures = meter.measures()
    # One device's peak, on the devices that there are.
    assert measures["model_flops_utilization"] == pytest.approx(1 / jax.device_count())
    assert measures["device_memory_gib"] == 3.0
    assert measures.keys() == {*throughput.MEASURES}


def test_a_device_that_says_nothing_is_not_guessed():
    cpu = jax.local_devices()[0]
    assert throughput.peak_flops(cpu) is None
    meter = throughput.Throughput(batch_size=8, flops_per_image=1e9)
    assert meter.measures().keys() == {"images_per_second", "updates_per_second"}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
    ],
)
def test_devices_are_known_by_their_names(name, peak):
    assert throughput.peak_flops(_Device(device_kind=name)) == peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "multiplications"), [(cifar10, 17.9e9), (imagenet64, 109.7e9)]
)
def test_the_papers_networks_cost_what_others_count(config, multiplications):
    """Within 6 %: others count every product of a padded convolution."""
    flops = make_model(config.get_config()).forward_flops()
    assert flops == pytest.approx(2 * multiplications, rel=0.06)


def test_the_work_of_fused_attention_is_counted(monkeypatch):
    config = tiny.config("train", model={"dtype": "bfloat16"})
    flops = make_model(config).forward_flops()
    monkeypatch.setattr(attention, "compute_capability", lambda: (9, 0))
    assert make_model(config).forward_flops() == flops > 0


def test_a_profile_traces_so_many_updates_and_not_the_compilation(tmp_path):
    step = jax.jit(lambda x: x + 1)
    profile = throughput.Profile(6)
    counts = []
    for call in range(5):
        with profile.trace(tmp_path, 4, counts=call > 0) as watched:
            watched.append(step(call))
        counts.append(len(list(tmp_path.rglob("*.xplane.pb"))))
    assert counts == [0, 0, 1, 1, 1]  # calls 1 and 2
