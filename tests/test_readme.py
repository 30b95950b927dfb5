import pathlib
import re
import sys
import types

import pytest

from configs import folder
from vdiff_jax.from_config.data import make_source

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_example_runs_as_it_stands():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["loss"].shape == (8,)
    assert (scope["loss"] >= 0).all()
    assert scope["pictures"].shape == scope["x"].shape


def test_the_pictures_it_shows_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (pathlib.Path(__file__).parents[1] / path).is_file()


def test_the_source_of_the_docs_is_one(monkeypatch):
    text = (ROOT / "docs" / "data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    module = types.ModuleType("my_data")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_data", module)
    config = folder.get_config()
    config.update(
        {
            "data": {"source": "my_data:make_source", "image_size": 32},
            "model": {"num_classes": 32},
        }
    )
    source = make_source(config, "train")
    assert len(source) > 900
    assert source[3]["image"].shape == (32, 32, 3)
    assert source[3]["label"] < 32
