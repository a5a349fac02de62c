// Draws the curves anew wherever they are zoomed, and says the values under the pointer. Everything shown is there
// without it too. With `data-follow` it fetches the page's own data again and again, and changes only what is new.
"use strict";

const MARGIN = { left: 64, right: 12, top: 12, bottom: 44 };
const HEIGHT = 320;
const POLL_MS = 2000;
const COLORS = 6;

let data = JSON.parse(document.getElementById("data").textContent);
const view = { axis: "step", from: null, to: null, log: new Set() };  // what all curves show
const chartOf = (figure) => data.charts.find((chart) => chart.id === figure.id);
const figures = () => [...document.querySelectorAll("figure")];
const classOf = (curve) => `${curve.kind} c${curve.run % COLORS} d${Math.floor(curve.run / COLORS) % 4}`;

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Round numbers between low and high, about `count` of them; on a log axis powers of ten, or 1, 2 and 5 times them.
function ticks(low, high, count, log) {
  if (log) {
    const found = [], many = Math.log10(high / low) > count;
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const times of many ? [1] : [1, 2, 5]) found.push(times * 10 ** power);
    const inside = found.filter((tick) => tick >= low && tick <= high);
    if (inside.length > 1) return inside.filter((_, i) => i % Math.ceil(inside.length / (2 * count)) === 0);
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => power * times >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function label(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("+", "");
  return String(Number(value.toPrecision(6)));
}

// Where a chart's curves lie: scales of both axes over what is visible, and the size of the drawing.
function layout(figure) {
  const chart = chartOf(figure), log = view.log.has(chart.id);
  const curves = chart.curves.filter((curve) => curve.x[view.axis]);
  const all = curves.flatMap((curve) => curve.x[view.axis]);
  let low = view.from ?? all.reduce((a, b) => Math.min(a, b), Infinity);
  let high = view.to ?? all.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!(high > low)) [low, high] = [low - 1, low + 1];
  let bottom = Infinity, top = -Infinity;
  for (const curve of curves)
    curve.y.forEach((value, i) => {
      const x = curve.x[view.axis][i];
      if (x < low || x > high || (log && value <= 0)) return;
      bottom = Math.min(bottom, value);
      top = Math.max(top, value);
    });
  if (!Number.isFinite(bottom)) [bottom, top] = log ? [1, 10] : [0, 1];
  if (!(top > bottom)) [bottom, top] = log ? [bottom / 2, bottom * 2] : [bottom - (Math.abs(bottom) * 0.1 || 1), top + (Math.abs(top) * 0.1 || 1)];
  const width = Math.max(280, figure.querySelector(".plot").clientWidth);
  const scale = log ? Math.log : (value) => value, room = 0.04 * (scale(top) - scale(bottom));
  const [first, last] = [scale(bottom) - room, scale(top) + room];
  const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  return {
    curves, log, width, low, high, bottom, top,
    x: (value) => MARGIN.left + (inner.width * (value - low)) / (high - low),
    y: (value) => MARGIN.top + inner.height * (1 - (scale(value) - first) / (last - first)),
    at: (pixel) => low + ((high - low) * (pixel - MARGIN.left)) / inner.width,
  };
}

function draw(figure) {
  const place = layout(figure), { width } = place, floor = HEIGHT - MARGIN.bottom;
  const clip = `clip-${figure.id}`, title = chartOf(figure).title;
  const axis = document.querySelector(`#axis option[value=${view.axis}]`).textContent;
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${title} by ${axis}` });
  const defs = element("clipPath", { id: clip });
  defs.append(element("rect", { x: MARGIN.left - 4, y: 0, width: width - MARGIN.left - MARGIN.right + 8, height: floor + 4 }));
  const grid = element("g", { class: "grid" }), labels = element("g", { class: "label" });
  for (const tick of ticks(place.bottom, place.top, 5, place.log)) {
    const y = place.y(tick);
    grid.append(element("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
    labels.append(element("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, label(tick)));
  }
  for (const tick of ticks(place.low, place.high, Math.max(2, width / 110), false)) {
    const x = place.x(tick);
    grid.append(element("line", { x1: x, x2: x, y1: MARGIN.top, y2: floor }));
    labels.append(element("text", { x, y: floor + 18, "text-anchor": "middle" }, label(tick)));
  }
  labels.append(element("text", { x: width / 2, y: HEIGHT - 6, "text-anchor": "middle" }, axis));
  const lines = element("g", { "clip-path": `url(#${clip})` });
  for (const curve of place.curves) {
    const points = [];
    curve.y.forEach((value, i) => {
      if (!place.log || value > 0) points.push([place.x(curve.x[view.axis][i]).toFixed(1), place.y(value).toFixed(1)]);
    });
    if (curve.kind === "dots")
      for (const [cx, cy] of points) lines.append(element("circle", { class: classOf(curve), cx, cy, r: 3.5 }));
    else if (points.length)
      lines.append(element("polyline", { class: classOf(curve), points: [...points, points.at(-1)].join(" ") }));
  }
  svg.append(defs, grid, labels, lines);
  figure.querySelector(".plot").replaceChildren(svg);
}

const drawAll = () => figures().forEach(draw);

function zoom(from, to) {
  [view.from, view.to] = [from, to];
  drawAll();
}

const nearest = (xs, x) => xs.reduce((found, value, i) => (Math.abs(value - x) < Math.abs(xs[found] - x) ? i : found), 0);

// Says the values of all curves nearest to x, and marks the place in the drawing.
function point(figure, x) {
  const place = layout(figure), said = figure.querySelector(".values"), svg = figure.querySelector("svg");
  const near = place.curves.map((curve) => {
    const xs = curve.x[view.axis];
    const best = nearest(xs, x);
    return { curve, x: xs[best], y: curve.y[best] };
  });
  svg.querySelector(".cursor")?.remove();
  const main = near.find(({ curve }) => curve.kind === "line");
  if (!main) return;
  svg.append(element("line", { class: "cursor", x1: place.x(main.x), x2: place.x(main.x), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
  const words = { raw: "", line: "", dots: "validation " };
  said.replaceChildren(`${document.querySelector(`#axis option[value=${view.axis}]`).textContent} ${label(main.x)}: `);
  for (const { curve, x: where, y } of near) {
    const raw = near.some((other) => other.curve.run === curve.run && other.curve.kind === "raw");
    const what = curve.kind === "line" && raw ? "mean " : words[curve.kind];
    const run = data.runs.length > 1 ? `${data.runs[curve.run]} ` : "";
    const span = document.createElement("span");
    span.className = `c${curve.run % COLORS}`;
    span.textContent = `${run}${what}${label(y)}${where === main.x || curve.kind !== "dots" ? "" : ` (at ${label(where)})`}`;
    said.append(span, " ");
  }
}

// The pointer: where it hovers, values are said; across what it drags, the curves zoom.
function listen(figure) {
  const plot = figure.querySelector(".plot"), log = figure.querySelector(".log");
  let start = null, cursor = null;
  const where = (event) => {
    const box = plot.querySelector("svg").getBoundingClientRect(), place = layout(figure);
    const x = place.at(((event.clientX - box.left) * place.width) / box.width);
    return Math.min(place.high, Math.max(place.low, x));
  };
  plot.addEventListener("pointermove", (event) => {
    cursor = where(event);
    point(figure, cursor);
    if (start === null) return;
    const place = layout(figure), [from, to] = [start, cursor].sort((a, b) => a - b);
    plot.querySelector(".range")?.remove();
    const size = { x: place.x(from), y: MARGIN.top, width: place.x(to) - place.x(from), height: HEIGHT - MARGIN.top - MARGIN.bottom };
    plot.querySelector("svg").append(element("rect", { class: "range", ...size }));
  });
  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = where(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    const place = layout(figure), [from, to] = [start ?? 0, where(event)].sort((a, b) => a - b);
    if (start !== null && place.x(to) - place.x(from) > 8) zoom(from, to);
    start = null;
    plot.querySelector(".range")?.remove();
  });
  plot.addEventListener("pointercancel", () => { start = null; plot.querySelector(".range")?.remove(); });
  plot.addEventListener("dblclick", () => zoom(null, null));
  plot.addEventListener("keydown", (event) => {
    const place = layout(figure), main = place.curves.find((curve) => curve.kind === "line");
    if (!main || event.ctrlKey || event.metaKey || event.altKey) return;
    const seen = main.x[view.axis].filter((x) => x >= place.low && x <= place.high);
    const at = cursor === null ? 0 : nearest(seen, cursor), middle = cursor ?? (place.low + place.high) / 2;
    const half = (place.high - place.low) / 2;
    const stride = event.shiftKey ? Math.ceil(seen.length / 20) : 1;
    const go = (index) => { cursor = seen[Math.min(seen.length - 1, Math.max(0, index))]; if (cursor !== undefined) point(figure, cursor); };
    const keys = {
      ArrowRight: () => go(cursor === null ? 0 : at + stride),
      ArrowLeft: () => go(cursor === null ? seen.length - 1 : at - stride),
      Home: () => go(0),
      End: () => go(seen.length - 1),
      "+": () => zoom(middle - half / 2, middle + half / 2),
      "-": () => zoom(middle - half * 2, middle + half * 2),
      0: () => zoom(null, null),
      Escape: () => zoom(null, null),
    };
    keys["="] = keys["+"];
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-label", `${chartOf(figure).title}: arrow keys read values, plus and minus zoom, 0 shows all`);
  log.checked = view.log.has(figure.id);
  log.addEventListener("change", () => {
    if (log.checked) view.log.add(figure.id); else view.log.delete(figure.id);
    draw(figure);
  });
}

function begin() {
  document.querySelectorAll(".script").forEach((found) => { found.hidden = false; });
  const axis = document.getElementById("axis");
  if (!axis) return;
  axis.value = view.axis;
  axis.addEventListener("change", () => { view.axis = axis.value; zoom(null, null); });
  document.getElementById("all").addEventListener("click", () => zoom(null, null));
  figures().forEach(listen);
  drawAll();
}

// What is new of a page as the server has it now: the rows of tables, or all of it where there are others.
function renew(fresh) {
  const now = document.getElementById("page"), next = fresh.getElementById("page");
  if (now.dataset.shape !== next.dataset.shape) {
    document.querySelector("nav").replaceWith(fresh.querySelector("nav"));
    now.replaceWith(next);
    begin();
    return;
  }
  for (const part of next.querySelectorAll(".live")) {
    const old = document.getElementById(part.id);
    if (old && old.textContent !== part.textContent) old.replaceChildren(...part.childNodes);
  }
  drawAll();
}

async function follow(source) {
  const said = document.getElementById("follow");
  for (let last = "", misses = 0; ; ) {
    await new Promise((done) => { setTimeout(done, POLL_MS); });
    try {
      const answer = await fetch(source, { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      misses = 0;
      said.textContent = "following";
      if (text === last) continue;
      last = text;
      const found = JSON.parse(text);
      data = found.data;
      renew(new DOMParser().parseFromString(found.page, "text/html"));
      if (found.over) {
        said.textContent = "the run is over";
        return;
      }
    } catch {
      misses += 1;
      said.textContent = "no answer from fabric report: this is the last state that it sent";
      if (misses > 5) return;
    }
  }
}

begin();
addEventListener("resize", drawAll);
if (document.body.dataset.follow) follow(document.body.dataset.follow);
