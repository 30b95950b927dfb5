import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


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
