"use strict";

const drawn = JSON.parse(document.getElementById("drawn").textContent);
const symbols = ["circle", "cross", "diamond", "square", "star", "triangle", "wye"];
const count = new Intl.NumberFormat("en");

/** Fills the box with `make(width)`, again when its width changes or on demand. */
function chart(box, make) {
  let width = 0;
  const draw = () => width && box.replaceChildren(make(width));
  box.hidden = false;
  new ResizeObserver(() => {
    if (width === box.clientWidth) return;
    width = box.clientWidth;
    draw();
  }).observe(box);
  return draw;
}

/** The sliders along the ladder and over guidance, and what is beside it. */
function frames(form) {
  const { frame, weight, beside } = form.elements;
  const [ladder, ...others] = Array.from(
    document.querySelectorAll("#series .series"),
    (box) => ({
      box,
      figures: [...box.querySelectorAll("figure")],
      missing: box.querySelector(".missing"),
    }),
  );

  const places = (name) => [...new Set(ladder.figures.map(({ dataset }) => dataset[name]))];
  const [counts, weights] = [places("steps"), places("w")];

  function show() {
    const [steps, w] = [counts[frame.value], weights[weight ? weight.value : 0]];
    const isShown = ({ dataset }) => dataset.steps === steps && dataset.w === w;
    const shown = ladder.figures.find(isShown);
    for (const figure of ladder.figures) figure.hidden = figure !== shown;
    others.forEach(({ box, figures, missing }, i) => {
      box.hidden = beside.value !== String(i + 1);
      for (const figure of figures) figure.hidden = !isShown(figure);
      missing.hidden = figures.some((figure) => !figure.hidden);
    });
    const label = shown.querySelector("figcaption").textContent;
    frame.setAttribute("aria-valuetext", label);
    weight?.setAttribute("aria-valuetext", label);
  }

  form.hidden = false;
  form.addEventListener("input", show);
  show();
}

/** The choice of a metric: its curves and its table. */
function metrics(form) {
  const choice = form.elements.metric;
  const tables = document.querySelectorAll(".panel");
  const redraw = chart(document.getElementById("ladder"), (width) =>
    ladderPlot(
      drawn.panels.find((panel) => panel.name === choice.value),
      width,
    ),
  );

  function show() {
    for (const table of tables) table.hidden = table.dataset.metric !== choice.value;
    redraw();
  }

  form.hidden = drawn.panels.length < 2;
  form.addEventListener("input", show);
  show();
}

/** Metric against evaluations, a curve for each model and sampler. */
function ladderPlot(panel, width) {
  const points = panel.points.filter((point) => point.value !== null);
  if (points.length === 0) return "Nothing to draw.";
  const spreads = points.filter((point) => point.high !== null);
  const realVsReal = panel.real_vs_real === null ? [] : [panel.real_vs_real];
  const position = { x: "evaluations", y: "value" };
  const highest = d3.max(points, (point) => point.high ?? point.value);
  return Plot.plot({
    width,
    height: Math.min(440, 200 + width / 3),
    marginTop: 36,
    marginBottom: 44,
    marginLeft: 56,
    ariaLabel: `${panel.label} against evaluations; the table has the values.`,
    ...looks(points),
    x: {
      type: "log",
      base: 2,
      label: "network evaluations for one image",
      labelAnchor: "center",
      labelArrow: "none",
      labelOffset: 38,
      ticks: powers(d3.extent(panel.evaluations)),
      tickFormat: "d",
      inset: 12,
    },
    y: {
      type: panel.scale === "log" ? "log" : "linear",
      domain: panel.scale === "unit" ? [0, Math.max(1, highest)] : undefined,
      label: panel.label + (panel.better ? ` (${panel.better} is better)` : ""),
      labelArrow: "none",
      ticks: 6,
      tickFormat: "~g",
      nice: true,
      grid: true,
    },
    marks: [
      Plot.ruleY(realVsReal, {
        stroke: "var(--real-vs-real)",
        strokeWidth: 1.5,
        strokeDasharray: "2 4",
      }),
      Plot.text(realVsReal, {
        text: ["real vs. real"],
        y: Plot.identity,
        frameAnchor: "right",
        lineAnchor: "bottom",
        dy: -4,
        fill: "var(--real-vs-real)",
        stroke: "var(--paper)",
        strokeWidth: 4,
      }),
      Plot.ruleX(spreads, {
        x: "evaluations",
        y1: "low",
        y2: "high",
        stroke: "curve",
        strokeWidth: 1.5,
        marker: "tick",
      }),
      Plot.lineY(points, { ...position, stroke: "curve", strokeWidth: 2 }),
      Plot.dot(points, { ...position, fill: "curve", symbol: "curve", r: 5 }),
      tip(points, position, ({ curve, evaluations, shown }) => [
        curve,
        `${count.format(evaluations)} evaluations`,
        shown,
      ]),
    ],
  });
}

/** Colour and symbol of each curve, the same whatever the metric. */
function looks(points) {
  const names = new Set(points.map((point) => point.curve));
  const domain = drawn.curves.filter((curve) => names.has(curve));
  const places = domain.map((curve) => drawn.curves.indexOf(curve));
  return {
    color: { domain, range: places.map((i) => `var(--curve-${i % 8})`) },
    symbol: { domain, range: places.map((i) => symbols[i % 7]), legend: true },
  };
}

/** Powers of two from the least to the most. */
function powers([least, most]) {
  const from = Math.floor(Math.log2(least));
  return d3.range(from, Math.log2(most) + 1).map((exponent) => 2 ** exponent);
}

/** The tooltip of the point nearest to the mouse or the finger. */
function tip(points, position, lines) {
  const title = (point) => lines(point).join("\n");
  const nearest = Plot.pointer({ ...position, title, maxRadius: Infinity });
  return Plot.tip(points, { ...nearest, lineWidth: 24 });
}

/** A loss of one run, or another metric of it: training and held out, by updates. */
function lossPlot(loss, width) {
  const points = ["training", "held_out"]
    .flatMap((kind) => loss[kind].map(([update, value]) => ({ kind, update, value })))
    .filter((point) => point.value !== null);
  const [training, heldOut] = ["training", "held_out"].map((kind) =>
    points.filter((point) => point.kind === kind),
  );
  const position = { x: "update", y: "value" };
  return Plot.plot({
    width,
    height: 170,
    marginTop: 12,
    marginBottom: 42,
    marginLeft: 48,
    ariaLabel: `${loss.metric.replaceAll("_", " ")} of ${loss.name} against updates.`,
    x: {
      label: "updates",
      labelArrow: "none",
      labelOffset: 36,
      ticks: 4,
      tickFormat: "~s",
    },
    y: {
      type: points.every((point) => point.value > 0) ? "log" : "linear",
      label: null,
      ticks: 4,
      tickFormat: "~g",
      grid: true,
    },
    marks: [
      Plot.lineY(training, { ...position, stroke: "var(--training)" }),
      Plot.lineY(heldOut, { ...position, stroke: "var(--held-out)", strokeWidth: 2 }),
      Plot.dot(heldOut, { ...position, fill: "var(--held-out)", r: 2.5 }),
      tip(points, position, ({ kind, update, value }) => [
        kind.replace("_", " "),
        `update ${count.format(update)}`,
        value.toPrecision(4),
      ]),
    ],
  });
}

for (const start of [frames, metrics]) {
  const form = document.getElementById(start.name);
  if (form) start(form);
}
document.querySelectorAll(".losses .chart").forEach((box, i) => {
  chart(box, (width) => lossPlot(drawn.losses[i], width));
});
