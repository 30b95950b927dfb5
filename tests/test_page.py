"""The page of a run: its text, and what a browser makes of it."""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import html.parser
import io
import json
import os
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest

from vdiff_jax.datasets.digits import digits
from vdiff_jax.distillation import progressive
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.evaluation import page
from vdiff_jax.evaluation.measurement import Measurement, of_metric
from vdiff_jax.evaluation.page.panels import number, panels

STEPS = (64, 32, 16, 8, 4, 2, 1)
HARM = "</script><img src=x onerror=\"document.title='harmed'\"><!--"


# A run that might have been.


def _name(model, steps):
    return f"{model}, {steps} step{'s' * (steps > 1)}"


def _noisy(images, amount, seed=0):
    noise = np.random.default_rng(seed).normal(0, 255, images.shape)
    return np.clip(images + amount * noise, 0, 255).astype(np.uint8)


def _series(images):
    """Students lose a little; the base model at few steps sees only the mean."""
    base = page.Frame(label=_name("base", 128), steps=128, images=images)
    students = [
        page.Frame(
            label=_name("distilled", n), steps=n, images=_noisy(images, 0.15 / n, n)
        )
        for n in STEPS
    ]
    blurred = [
        page.Frame(
            label=_name("base, DDIM", n),
            steps=n,
            images=_noisy(images * (1 - 1 / n) + images.mean(0) / n, 0.05, n),
        )
        for n in STEPS[2:]
    ]
    return (
        page.Series(name="distilled", frames=[base, *students]),
        page.Series(name="base, DDIM", frames=blurred),
    )


def _row(metric, model, sampler, steps, value, **more):
    fields = {
        "spread": 0.04 * abs(value),
        "values": [0.96 * value, value, 1.04 * value],
        "num_images": 4096,
        "seconds_per_image": 1e-4 * steps,
    }
    if model == "distilled":
        fields["method"] = "progressive"
    return Measurement(
        model=model,
        sampler=sampler,
        steps=steps,
        evaluations=2 * steps - 1 if sampler == "heun" else steps,
        metric=metric,
        value=value,
        **{**fields, **more},
    )


def _ladder():
    distances = {
        ("distilled", "ddim"): [6.7, 6.7, 6.8, 7.1, 7.6, 9.1, 11.0],
        ("base", "ddim"): [7.0, 7.9, 9.9, 15.7, 36.2, 132.0, 782.0],
        ("base", "ancestral"): [9.0, 14.0, 31.0, 88.0, 210.0, 480.0, 795.0],
        ("base", "dpmpp_2m"): [6.6, 6.7, 7.2, 9.4, 21.0, 96.0, 790.0],
        ("base", "heun"): [6.5, 6.6, 7.0, 9.8, 40.0, 250.0, 788.0],
    }
    metrics = {
        "frechet_classifier": lambda value: value,
        "kid": lambda value: (value - 6.6) / 1000,
        "precision": lambda value: 1 / (1 + value / 100),
    }
    rows = [
        _row(metric, *curve, steps, of(value))
        for metric, of in metrics.items()
        for curve, values in distances.items()
        for steps, value in zip((128, *STEPS), [6.5, *values], strict=True)
        if steps < 128 or curve == ("base", "ddim")
    ]
    warning = "4,096 pictures are fewer than usual."
    rows[0] = dataclasses.replace(rows[0], warning=warning)
    return [*rows, _row("fid", "base", "ddim", 1, float("nan"), spread=None)]


def _loss(name, updates):
    rng = np.random.default_rng(updates)

    def points(every, noise):
        steps = np.arange(every, updates + 1, every)
        values = 0.02 + (1 + steps / 100) ** -1.2
        values *= np.exp(noise * rng.normal(size=len(steps)))
        return list(zip(steps.tolist(), values.tolist(), strict=True))

    return page.Loss(name=name, training=points(2, 0.2), held_out=points(100, 0.03))


def _trajectory(images, steps):
    times = np.linspace(1, 0, steps, endpoint=False)
    return page.Trajectory(
        label=_name("distilled", steps),
        columns=[f"t = {t:.2f}" for t in times],
        x_hat=np.stack([_noisy(images, 0.3 * t) for t in times], axis=1),
        z=np.stack([_noisy(images * (1 - t), t) for t in times], axis=1),
    )


def _neighbours(samples, data):
    apart = samples[:, None].astype(float) - data
    distances = np.sqrt((apart**2).sum((2, 3, 4))) / 255
    order = np.argsort(distances, axis=1)[:, :3]
    return page.Neighbours(
        distance="Euclidean, of pixels in 0 .. 1",
        samples=samples,
        nearest=data[order],
        distances=np.take_along_axis(distances, order, axis=1),
    )


@functools.cache
def _content():
    images = digits("train").images
    blend = np.linspace(0, 1, 9)[:, None, None, None]
    between = (images[:1] * (1 - blend) + images[1:2] * blend).astype(np.uint8)
    losses = [
        _loss("base", 3500),
        *(_loss(_name("distilled", n), 400 + 1200 // n) for n in STEPS),
    ]
    return page.Content(
        title="Digits: 128 steps to one",
        command="python launch.py --config configs/digits.py --workdir runs/digits",
        date="3 May 2025",
        summary=[
            ("one step", "11.0"),
            ("base, 128 steps", "6.5"),
            ("parameters", 251_344),
            ("trained and distilled in", "6 min"),
        ],
        series=_series(images[:12]),
        ladder=_ladder(),
        real_vs_real={"frechet_classifier": 3.5, "precision": 0.97},
        provenance=[
            ("Data", "digits, train split, 1,617 pictures, 8×8, as they are"),
            ("Features", "classifier, right on 98.3% of the held-out pictures"),
            ("Features, sha256", hashlib.sha256(b"features").hexdigest()),
            ("Samples", "4,096 for each row, seeds 0, 1, 2"),
        ],
        timing=[
            {
                "model": "distilled",
                "sampler": "DDIM",
                "steps": n,
                "evaluations": n,
                "seconds_per_image": 1e-4 * n,
                "images/s": 1e4 / n,
                "batch": 512,
                "device": "cpu",
            }
            for n in STEPS
        ],
        trajectories=[_trajectory(images[:3], 8), _trajectory(images[:3], 2)],
        interpolations=[page.Strip(label="distilled, 8 steps", images=between)],
        neighbours=_neighbours(images[:6], images[6:600]),
        likelihood=[
            {"model": "base", "split": "train", "bits per dimension": 2.402},
            {"model": "base", "split": "test", "bits per dimension": 2.513},
        ],
        losses=[*losses, dataclasses.replace(losses[-1], metric="gap")],
        costs=[
            {
                "run": loss.name,
                "updates": loss.training[-1][0],
                "images": 64 * loss.training[-1][0],
                "seconds": 0.02 * loss.training[-1][0],
                "images/s": 3200.0,
                "parameters": 251_344,
            }
            for loss in losses
        ],
        config={
            "seed": 0,
            "data": {"source": "digits", "image_size": 8, "flip": False, "note": HARM},
            "model": {"channels": 32, "multipliers": (1,), "net": None},
            "train": {"steps": 3500, "learning_rate": 1e-3, "decay": "cosine"},
            "distill": {"start_steps": 128, "updates": "400, 16: 600, 8: 1200"},
        },
    )


# The text of the page.


class _Tags(html.parser.HTMLParser):
    """The tags of a page and their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.all = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def named(self, *names):
        return [attrs for tag, attrs in self.all if tag in names]


def _read(source):
    """The picture of a data URI."""
    kind, data = source.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def text():
    return page.render(_content())


def test_the_same_content_gives_the_same_page(text):
    _content.cache_clear()
    assert page.render(_content()) == text


def test_the_page_needs_no_other_file(text):
    tags = _Tags(text)
    links = [
        attrs[name]
        for _, attrs in tags.all
        for name in ("href", "src", "srcset", "action")
        if name in attrs
    ]
    assert len(links) > 100
    assert all(link.startswith(("#", "data:")) for link in links)


def test_every_picture_has_its_own_words(text):
    words = [attrs["alt"] for attrs in _Tags(text).named("img")]
    assert all(words)
    assert len(set(words)) == len(words)


def test_headings_go_down_one_level_at_a_time(text):
    levels = [int(tag[1]) for tag, _ in _Tags(text).all if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert max(np.diff(levels)) == 1


def test_ids_are_unique_and_links_lead_to_them(text):
    tags = _Tags(text)
    ids = [attrs["id"] for _, attrs in tags.all if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {attrs["href"][1:] for attrs in tags.named("a")} <= set(ids)


PARTS = [
    field.name
    for field in dataclasses.fields(page.Content)
    if field.name not in ("title", "command", "date", "summary", "real_vs_real")
]


def test_an_empty_page_has_no_heading_but_its_title():
    tags = _Tags(page.render(page.Content(title="Nothing")))
    assert len(tags.named("h1")) == 1
    assert not tags.named("h2", "h3", "section", "nav", "table", "dl", "img")


@pytest.mark.parametrize("part", PARTS)
def test_each_part_stands_alone(part):
    alone = page.Content(title="One part", **{part: getattr(_content(), part)})
    tags = _Tags(page.render(alone))
    assert len(tags.named("h2")) == len(tags.named("section")) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_out_as_they_went_in(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, channels), np.uint8)
    strip = page.Strip(label="noise", images=images)
    tags = _Tags(page.render(page.Content(title="Noise", interpolations=[strip])))
    shown = [_read(attrs["src"]).reshape(6, 4, channels) for attrs in tags.named("img")]
    np.testing.assert_array_equal(shown, images)


def test_long_curves_are_thinned_to_means():
    points = [(step, float(step % 2)) for step in range(1, 8001)]
    content = page.Content(title="x", losses=[page.Loss(name="a", training=points)])
    ((_, thinned),) = re.findall(r'"(training)": (\[\[.*?\]\])', page.render(content))
    thinned = np.array(re.findall(r"\[?\[(\d+), ([\d.]+)\]", thinned), float)
    assert len(thinned) <= 400
    assert thinned[-1, 0] == 8000
    np.testing.assert_allclose(thinned[:, 1], 0.5)


def test_the_libraries_are_those_that_were_fetched():
    folder = pathlib.Path(page.__file__).parent / "vendor"
    listed = re.findall(
        r"\| `(\S+)` .* `(\w{64})` \|", (folder / "README.md").read_text()
    )
    assert {name for name, _ in listed} == {path.name for path in folder.glob("*.js")}
    for name, digest in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


# What is said of the ladder.


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("fid", "FID"),
        ("fid_to_cifar10", "FID, to cifar10"),
        ("frechet_pixels", "Fréchet distance, pixels"),
        ("spatial_frechet_classifier", "Spatial Fréchet distance, classifier"),
        ("kidney", "kidney"),
    ],
)
def test_a_metric_of_other_features_is_still_that_metric(name, label):
    (panel,) = panels([_row(name, "base", "ddim", 1, 2.0)], {})
    assert panel.label == label
    assert panel.scale == ("linear" if name == "kidney" else "log")


def test_a_curve_has_the_name_of_a_method_where_there_are_others(monkeypatch):
    monkeypatch.setitem(METHODS, "moment_matching", progressive.METHOD)
    rows = [
        _row("fid", "base", "heun", 4, 9.0),
        _row("fid", "distilled", "ddim", 4, 2.0),
        _row("fid", "distilled", "ddim", 4, 1.0, method="moment_matching"),
        _row("fid", "distilled", "stochastic", 4, 3.0, method="stochastic", w=0.5),
    ]
    (alone,), (panel,) = panels(rows[:2], {}), panels(rows, {})
    assert alone.curves == ["base, Heun", "distilled, DDIM"]
    assert panel.curves == [
        "base, Heun", "progressive", "moment matching", "stochastic, w = 0.5"
    ]  # fmt: skip
    assert panel.at("moment matching", 4).value == 1.0
    # The first colours are those of students.
    text = page.render(page.Content(title="x", ladder=rows))
    drawn = re.search(r'id="drawn">(.*)</script>', text).group(1)
    assert json.loads(drawn)["curves"] == [*panel.curves[1:], "base, Heun"]


def test_another_metric_of_a_loss_is_shown_beside_it():
    points = [(10, -0.5), (20, 0.25)]
    losses = [
        page.Loss(name="4 steps", training=[(10, 1.0)]),
        page.Loss(name="4 steps", metric="gap_of_x", training=points),
    ]
    text = page.render(page.Content(title="x", losses=losses))
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert captions == [
        "4 steps<span>1.000</span>", "4 steps: gap of x<span>0.2500</span>"
    ]  # fmt: skip


@pytest.mark.parametrize(("metric", "best"), [("fid", 2.0), ("precision", 3.0)])
def test_the_best_at_as_many_evaluations_is_marked(metric, best):
    values = {"ddim": 3.0, "ancestral": float("nan"), "heun": 2.0}
    rows = [_row(metric, "base", name, 1, value) for name, value in values.items()]
    (panel,) = panels([*rows, _row(metric, "base", "ddim", 2, 9.0)], {})
    assert [point.value for point in panel.points if point.best] == [best]


def test_of_an_unknown_metric_nothing_is_best():
    rows = [_row("charm", "base", name, 1, 2.0) for name in ("ddim", "heun")]
    assert not any(point.best for point in panels(rows, {})[0].points)


@pytest.mark.parametrize(("value", "scale"), [(0.5, "log"), (0.0, "linear")])
def test_an_axis_is_logarithmic_only_where_there_is_a_logarithm(value, scale):
    (panel,) = panels([_row("fid", "base", "ddim", 1, value, spread=9.0)], {})
    assert panel.scale == scale
    assert panel.points[0].low == (0.5 if scale == "log" else -9.0)


def test_a_warning_of_many_rows_is_one_note():
    warnings = ["few", None, "few", "slow"]
    rows = [
        _row("fid", "base", "ddim", n + 1, 1.0, warning=warning)
        for n, warning in enumerate(warnings)
    ]
    (panel,) = panels(rows, {})
    assert panel.notes == ["few", "slow"]
    assert [point.note for point in panel.points] == [1, 0, 1, 2]


@pytest.mark.parametrize(
    ("value", "spread", "shown"),
    [
        (11.0, 0.44, "11.00 ± 0.44"),
        (782.3, 31.0, "782 ± 31"),
        (-0.00031, 0.00042, "−0.00031 ± 0.00042"),
        (12345.6, None, "12,346"),
        (6.5, 0.0, "6.500"),
        (float("nan"), None, "not a number"),
    ],
)
def test_a_value_has_as_many_digits_as_its_spread_allows(value, spread, shown):
    (panel,) = panels([_row("kid", "base", "ddim", 1, value, spread=spread)], {})
    assert panel.points[0].shown == shown


def test_text_of_other_values():
    values = [None, "", True, 1617, 0.0123456, float("inf"), "DDIM"]
    shown = ["–", "–", "True", "1,617", "0.01235", "infinite", "DDIM"]
    assert [number(value) for value in values] == shown


# What a browser makes of it.


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is absent")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is absent")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def visit(browser, file):
    """Opens the page; at the end nothing may have been complained of or asked for."""
    complaints, requests = [], []
    with contextlib.ExitStack() as stack:

        def visit(width=1280, height=800, **options):
            context = stack.enter_context(
                browser.new_context(
                    viewport={"width": width, "height": height}, **options
                )
            )
            tab = context.new_page()
            tab.set_default_timeout(10_000)
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            tab.on("console", lambda message: complaints.append(message.text))
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(file.as_uri())
            return tab

        yield visit
    assert not complaints
    assert {url for url in requests if not url.startswith("data:")} == {file.as_uri()}


def _shown(tab, place):
    """Label and pictures of what is visible of one series."""
    figure = tab.locator("#series .series").nth(place).locator("figure:visible")
    label = figure.locator("figcaption").inner_text()
    sources = figure.locator("img").evaluate_all("all => all.map(img => img.src)")
    return label, np.stack([_read(source) for source in sources])[..., None]


def test_the_slider_moves_all_noises_along_the_ladder(visit):
    tab = visit()
    slider = tab.locator("#frame")
    slider.focus()
    tab.keyboard.press("Home")
    distilled, base = _content().series
    at_same_steps = {frame.steps: frame for frame in base.frames}
    for frame in distilled.frames:
        label, pictures = _shown(tab, 0)
        assert label == slider.get_attribute("aria-valuetext") == frame.label
        np.testing.assert_array_equal(pictures, frame.images)

        other = at_same_steps.get(frame.steps)
        assert tab.locator(".missing").is_visible() == (other is None)
        if other:
            label, pictures = _shown(tab, 1)
            assert label == other.label
            np.testing.assert_array_equal(pictures, other.images)
        tab.keyboard.press("ArrowRight")


def test_a_second_slider_moves_along_the_guidance_weights(browser, tmp_path):
    images = digits("test").images[:4]
    frames = [
        page.Frame(
            label=f"distilled, {steps} steps, w = {w:g}",
            steps=steps,
            w=w,
            images=_noisy(images, 0.1 * w / steps, seed=steps),
        )
        for w in (0.0, 1.0, 4.0)
        for steps in (8, 4, 1)
    ]
    content = page.Content(
        title="guided", series=[page.Series(name="distilled", frames=frames)]
    )
    path = tmp_path / "guided.html"
    path.write_text(page.render(content), encoding="utf-8")
    with contextlib.closing(browser.new_page()) as tab:
        tab.goto(path.as_uri())
        for slider in ("#frame", "#weight"):
            tab.locator(slider).focus()
            tab.keyboard.press("Home")
        for i, frame in enumerate(frames):
            label, pictures = _shown(tab, 0)
            assert label == frame.label
            assert tab.locator("#weight").get_attribute("aria-valuetext") == label
            np.testing.assert_array_equal(pictures, frame.images)
            tab.locator("#frame").focus()
            tab.keyboard.press("ArrowRight")
            if i % 3 == 2:
                tab.keyboard.press("Home")
                tab.locator("#weight").focus()
                tab.keyboard.press("ArrowRight")


def test_nothing_need_be_beside_the_ladder(visit):
    tab = visit()
    tab.select_option("#beside", label="nothing")
    assert tab.locator("#series figure:visible").count() == 1


def test_the_metric_changes_curves_axis_and_table(visit):
    tab = visit()
    seen = set()
    for name, label in [
        ("frechet_classifier", "Fréchet distance, classifier (lower is better)"),
        ("kid", "KID (lower is better)"),
        ("precision", "Precision (higher is better)"),
    ]:
        tab.select_option("#metric", name)
        tab.get_by_text(label, exact=True).wait_for()
        seen.add(tab.locator("#ladder [aria-label=line]").inner_html())
        (visible,) = tab.locator(".panel:visible").all()
        assert visible.get_attribute("data-metric") == name
        has_line = name in _content().real_vs_real
        line = tab.locator("#ladder").get_by_text("real vs. real")
        assert line.count() == has_line
    assert len(seen) == 3
    tab.select_option("#metric", "fid")
    assert tab.locator("#ladder").inner_text() == "Nothing to draw."


@pytest.mark.parametrize("touch", [False, True])
def test_a_point_says_its_value(visit, touch):
    tab = visit(has_touch=touch)
    (panel,) = panels(of_metric(_ladder(), "frechet_classifier"), {})
    dots = tab.locator("#ladder [aria-label=dot] path")
    tab.locator("#ladder").scroll_into_view_if_needed()
    for curve, evaluations in [("distilled, DDIM", 1), ("base, ancestral", 8)]:
        point = panel.at(curve, evaluations)
        dot = dots.nth(panel.points.index(point))
        dot.tap(force=True) if touch else dot.hover(force=True)
        tip = tab.locator("#ladder [aria-label=tip] text")
        tip.wait_for()
        lines = tip.locator("tspan").all_text_contents()
        said = [line.removeprefix("\u200b") for line in lines]
        assert said == [curve, f"{evaluations} evaluations", point.shown]


def test_the_real_vs_real_distance_and_spreads_are_drawn_at_their_values(visit):
    tab = visit()
    rows = of_metric(_ladder(), "frechet_classifier")
    (panel,) = panels(rows, {"frechet_classifier": 3.5})
    tab.locator("#ladder svg").first.wait_for()
    dots = tab.locator("#ladder [aria-label=dot] path")
    places = dots.evaluate_all("all => all.map(dot => dot.getCTM().f)")
    # A logarithmic axis: heights are linear in logarithms.
    values = [point.value for point in panel.points]
    height = np.poly1d(np.polyfit(np.log(values), places, 1))
    np.testing.assert_allclose(height(np.log(values)), places, atol=0.1)

    drawn = tab.locator("#ladder [aria-label=rule] line").evaluate_all(
        "all => all.map(line => [line.y1, line.y2].map(y => y.baseVal.value))"
    )
    ends = [[3.5, 3.5], *([point.low, point.high] for point in panel.points)]
    expected = height(np.log(ends))
    # To the half pixel by which lines are kept sharp.
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected), atol=0.6)


def test_every_run_has_a_curve_of_its_loss(visit):
    charts = visit().locator(".losses .chart")
    assert charts.count() == len(_content().losses)
    for chart in charts.all():
        chart.scroll_into_view_if_needed()
        assert chart.locator("[aria-label=line] path").count() == 2


def test_a_keyboard_reaches_everything_and_shows_where_it_is(visit):
    tab = visit()
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    reached = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        name, outline = tab.evaluate(
            """() => {
              const one = document.activeElement;
              const name = one.id || one.getAttribute("aria-label") || one.tagName;
              return [name, getComputedStyle(one).outlineStyle];
            }"""
        )
        if name == "BODY":
            break
        reached.append(name)
        assert outline != "none"
    order = ["frame", "beside", "metric", "All measurements", "Speed", "Cost"]
    assert [name for name in reached if name in order] == order


def test_harmful_text_is_only_shown(visit):
    tab = visit()
    tab.locator("#configuration summary").click()
    assert tab.get_by_text(HARM, exact=True).is_visible()
    assert tab.title() == _content().title


@pytest.mark.parametrize("width", [320, 360])
def test_a_narrow_screen_does_not_scroll_sideways(visit, width):
    tab = visit(width=width, height=740)
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    tab.locator("#ladder svg").first.wait_for()
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= width


def test_without_scripts_all_tables_and_pictures_are_there(visit):
    tab = visit(java_script_enabled=False)
    assert not tab.locator("form:visible, .chart:visible").count()
    assert tab.locator(".panel:visible table").count() == 4
    distilled, base = _content().series
    frames = len(distilled.frames) + len(base.frames)
    assert tab.locator("#series figure:visible").count() == frames
    assert tab.locator("noscript p").is_visible()


def test_motion_can_be_turned_off(visit):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert visit(reduced_motion="reduce").evaluate(behaviour) == "auto"
    assert visit(reduced_motion="no-preference").evaluate(behaviour) == "smooth"


COLOURS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const of = (one) => numbers(getComputedStyle(one).color);
  const back = numbers(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll(
    "p, a, dt, dd, th, td, strong, li, h1, h2, h3, figcaption, label, svg text"
  )];
  return {back, texts: texts.map(of)};
}"""


def _luminance(colour):
    parts = np.array(colour[:3]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(visit, scheme):
    tab = visit(color_scheme=scheme)
    tab.locator("#ladder svg").first.wait_for()
    found = tab.evaluate(COLOURS)
    back = _luminance(found["back"])
    assert (back > 0.5) == (scheme == "light")
    for colour in {tuple(colour) for colour in found["texts"]}:
        bright, dim = sorted((_luminance(colour), back), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, colour


VIEWS = {
    "desktop-light": {"color_scheme": "light"},
    "desktop-dark": {"color_scheme": "dark"},
    "phone": {"width": 360, "height": 740, "device_scale_factor": 2},
}


@pytest.mark.parametrize("name", VIEWS)
def test_there_is_something_to_see(visit, tmp_path, name):
    folder = pathlib.Path(os.environ.get("VDIFF_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    tab = visit(**VIEWS[name])
    tab.locator("#ladder svg").first.wait_for()
    path = folder / f"{name}.png"
    tab.screenshot(path=path, full_page=True)
    picture = np.asarray(PIL.Image.open(path).convert("RGB"), np.float32)
    for third in np.array_split(picture, 3):
        assert third.std() > 5
    assert (picture.mean() > 128) == (name != "desktop-dark")
