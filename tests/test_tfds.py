"""TensorFlow Datasets: prepared, read and refused, without TensorFlow."""

import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.images import Fit, Images
from vdiff_jax.datasets.tfds import TfdsFiles


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import tiny_digits; tiny_digits.prepare({str(folder)!r})",
        ],
        cwd=pathlib.Path(__file__).parent,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_prepared_data_set_is_the_data_set(prepared, split):
    source = Images(TfdsFiles("tiny_digits", split, prepared), Fit(8, 1))
    expected = digits(split)
    assert len(source) == len(expected)
    # TFDS shuffles as it writes.
    read = [source[i] for i in range(len(source))]
    assert sorted((e["image"].tobytes(), e["label"]) for e in read) == sorted(
        (expected[i]["image"].tobytes(), expected[i]["label"])
        for i in range(len(expected))
    )
    assert source.name(3) == f"tiny_digits, {split}, example 3"
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["image"], read[3]["image"])
    assert "tensorflow" not in sys.modules


def test_slices_are_splits_too(prepared):
    assert len(TfdsFiles("tiny_digits", "train[:100]", prepared)) == 100


def test_a_folder_may_have_a_name_that_a_pattern_would_read(prepared, tmp_path):
    folder = tmp_path / "run[1] *{a,b} ä?"
    shutil.copytree(prepared, folder)
    assert len(TfdsFiles("tiny_digits", "test", folder)) == 180


def test_what_is_not_prepared_is_refused_with_the_command(prepared):
    command = f"tfds build cifar10 --file_format=array_record --data_dir={prepared}"
    with pytest.raises(ValueError, match="'cifar10' is not prepared") as error:
        TfdsFiles("cifar10", "train", prepared)
    assert command in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'no_such_set' is not prepared"):
        TfdsFiles("no_such_set", "train", prepared)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(prepared):
    with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\], not 'v"):
        TfdsFiles("tiny_digits", "valid", prepared)
