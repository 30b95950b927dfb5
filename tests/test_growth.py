"""What growth and standing still are read from; how much there is, no test asks."""

import os
import time

import numpy as np
import pytest
import tensorboardX

from benchmarks import growth, startup


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 2.0])
def test_the_slope_of_a_power_law_is_its_exponent(exponent):
    sizes = np.array([1, 3, 16, 128])
    assert growth.slope(sizes, 0.7 * sizes**exponent) == pytest.approx(exponent)


def test_the_times_of_a_run_are_read_from_what_it_wrote(tmp_path):
    began = time.time()
    with tensorboardX.SummaryWriter(str(tmp_path / "tensorboard")) as board:
        for i in (1, 2, 3):  # a loss is noted when its call has ended
            board.add_scalar("loss", 0.5, 10 * i, walltime=began + i)
            board.add_scalar("grad_norm", 0.5, 10 * i, walltime=began + i + 0.1)
        board.add_scalar("held_out_loss", 0.5, 30, walltime=began + 4)
        image = np.zeros((2, 2, 1), np.uint8)
        board.add_image("samples", image, 30, walltime=began + 5, dataformats="HWC")
    (tmp_path / "result.json").touch()
    os.utime(tmp_path / "result.json", (began + 6, began + 6))

    record = startup.read_record(tmp_path)
    assert began <= record.opened <= time.time()
    assert record.calls == [began + 1, began + 2, began + 3]
    assert record.drawn == began + 5
    assert record.finished == pytest.approx(began + 6, abs=1e-3)


def test_the_parts_of_the_time_between_students_make_up_all_of_it():
    teacher = startup.Record(opened=0.0, calls=[5.0, 6.0], drawn=8.0, finished=11.0)
    student = startup.Record(opened=11.5, calls=[13.0, 14.0], drawn=15.0, finished=16.0)
    assert startup.parts(teacher, student) == {
        "all": 7.0,
        "held-out loss and samples": 2.0,
        "checkpoint, until it is whole": 3.0,
        "beginning the next": 0.5,
        "its first call": 1.5,
    }
