// Curves that can be pointed at, zoomed and laid over each other. Texts of a run become text nodes.

export const kept = {
  get(name, otherwise) {
    try { return JSON.parse(localStorage.getItem("tatara." + name)) ?? otherwise; }
    catch { return otherwise; }
  },
  set(name, value) {
    try { localStorage.setItem("tatara." + name, JSON.stringify(value)); } catch { /* no storage */ }
  },
};

export function html(tag, facts = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

const SVG = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;

function svg(tag, facts = {}, ...children) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(facts)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

// ---------------------------------------------------------------- numbers

const whole = (value) => Math.round(value).toLocaleString("en-US");

function exact(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e9 || size < 1e-4) return value.toExponential(4);
  return size >= 1e5 ? whole(value)
    : value.toLocaleString("en-US", { maximumSignificantDigits: 6 });
}

function short(value) {
  const size = Math.abs(value);
  for (const [suffix, factor] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (size >= factor) return Number((value / factor).toPrecision(4)) + suffix;
  }
  return value !== 0 && size < 1e-3 ? value.toExponential() : String(Number(value.toPrecision(4)));
}

const DAY = 86400; // seconds
const date = (seconds, facts) =>
  new Date(seconds * 1000).toLocaleString("en-GB", { hour12: false, ...facts });
const moment = (seconds) =>
  date(seconds, { dateStyle: "medium", timeStyle: "long" }); // with the zone
const clock = (seconds, span) => (span > DAY
  ? date(seconds, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" })
  : date(seconds, { timeStyle: "medium" }));

function ticks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw * 0.999999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

// Round times of the day here, in seconds since 1970.
function timeTicks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200]
    .find((seconds) => seconds >= raw) ?? Math.ceil(raw / DAY) * DAY;
  const zone = new Date(high * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((low - zone) / step) * step + zone; at <= high; at += step) found.push(at);
  return found;
}

function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const factors = (last - first) * 3 <= most ? [1, 2, 5] : [1];
  const found = [];
  for (let power = first; power <= last; power += Math.max(1, Math.ceil((last - first) / most))) {
    for (const factor of factors) found.push(factor * 10 ** power);
  }
  const inside = found.filter((value) => value >= low && value <= high);
  return inside.length > 1 ? inside : ticks(low, high, most);
}

// An exponential mean from both sides, so that it is not late: as the report smooths. Its span is a
// share of all points, so that a short curve keeps its shape.
function smooth(values, strength) {
  const span = 1 + strength ** 2 * values.length / 4, weight = 1 - 2 / (span + 1);
  const once = (row) => {
    let mean = 0, share = 1;
    return row.map((value) => {
      mean = weight * mean + (1 - weight) * value;
      share *= weight;
      return mean / (1 - share);
    });
  };
  return weight > 0 ? once(once(values).reverse()).reverse() : values;
}

// ---------------------------------------------------------------- charts

export const ROWS = 5;
const STEP = 0, MEAN = 1, LOW = 2, HIGH = 3, FIRST = 4; // of a point
const SMOOTHED = 20; // points of a curve from which on it is smoothed
const MARGIN = { left: 54, right: 12, top: 8, bottom: 22 };

// Charts that share their steps: a cursor in one is a cursor in all, and so is a range.
export class Group {
  constructor(holder, isTime) {
    this.holder = holder;
    this.isTime = isTime;
    this.charts = new Map();
    this.range = null;
    this.hidden = new Set();
    this.strength = kept.get("smooth", 0.3);
  }
  zoom(range) {
    this.range = range;
    if (this.reset) this.reset.disabled = !range;
    for (const chart of this.charts.values()) chart.closer = null;
    this.draw();
    this.refine?.(range);
  }
  draw() { for (const chart of this.charts.values()) chart.draw(); }
  point(step, from) {
    for (const chart of this.charts.values()) chart.point(step, chart === from);
  }
  // lines: of each metric, [{name, points}]
  set(metrics, lines, marks) {
    for (const [name, label] of metrics) {
      if (!this.charts.has(name)) {
        const chart = new Chart(this, name, label);
        this.charts.set(name, chart);
        this.holder.append(chart.figure);
      }
      this.charts.get(name).set(lines(name), marks(name));
    }
  }
}

class Chart {
  constructor(group, name, label) {
    this.group = group;
    this.name = name;
    this.log = kept.get("log", {})[name] === true;
    this.lines = [];
    this.marks = [];
    this.key = html("span", { class: "key two", hidden: "" }, "held-out");
    this.readout = html("span", { class: "readout soft" });
    this.drawing = svg("svg", { class: "chart", role: "img", tabindex: "0" });
    this.drawing.setAttribute("aria-label", label + ": arrows move a cursor, drag to zoom");
    this.tip = html("div", { class: "tip", hidden: "" });
    const scale = html("button", { type: "button", title: "logarithmic scale" }, "log");
    scale.setAttribute("aria-pressed", this.log);
    scale.addEventListener("click", () => {
      this.log = !this.log;
      kept.set("log", { ...kept.get("log", {}), [name]: this.log });
      scale.setAttribute("aria-pressed", this.log);
      this.draw();
    });
    const large = html("button", { type: "button", title: "over the whole width" }, "⤢");
    this.figure = html("figure", {},
      html("figcaption", {}, html("h3", { title: label }, label), this.key, this.readout, scale, large),
      this.drawing, this.tip);
    const isLarge = kept.get("large", { loss: true })[name] === true;
    this.figure.classList.toggle("large", isLarge);
    large.addEventListener("click", () => {
      const now = this.figure.classList.toggle("large");
      kept.set("large", { loss: true, ...kept.get("large", {}), [name]: now });
    });
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  listen() {
    const at = (event) => event.clientX - this.drawing.getBoundingClientRect().left;
    this.drawing.addEventListener("pointermove", (event) => {
      const x = at(event);
      if (this.dragged !== undefined) this.selectRange(this.dragged, x);
      this.group.point(this.stepAt(x), this);
    });
    this.drawing.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.dragged = at(event);
      this.drawing.setPointerCapture(event.pointerId);
      this.group.point(this.stepAt(this.dragged), this); // a finger does not hover
    });
    this.drawing.addEventListener("pointerup", (event) => {
      const from = this.dragged;
      this.dragged = undefined;
      this.selection?.remove();
      if (from === undefined || Math.abs(at(event) - from) < 6) return;
      const ends = [this.stepAt(from), this.stepAt(at(event))].sort((a, b) => a - b);
      if (ends[1] > ends[0]) this.group.zoom(ends);
    });
    this.drawing.addEventListener("pointercancel", () => {
      this.dragged = undefined;
      this.selection?.remove();
    });
    this.drawing.addEventListener("dragstart", (event) => event.preventDefault());
    this.drawing.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.group.point(null, null); // a finger's value stays
    });
    this.drawing.addEventListener("dblclick", () => this.group.zoom(null));
    this.drawing.addEventListener("blur", () => this.group.point(null, null));
    this.drawing.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const points = this.shown[0]?.points ?? [];
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (by && points.length) {
      const known = this.cursor === null ? -1 : nearest(points, this.cursor);
      const index = known < 0 ? points.length - 1 : known + by;
      this.group.point(points[Math.min(Math.max(index, 0), points.length - 1)][STEP], this);
    } else if (event.key === "+" || event.key === "-") {
      const [left, right] = this.span, middle = this.cursor ?? right;
      const half = ((right - left) / 2) * (event.key === "+" ? 0.5 : 2);
      const [least, most] = this.whole;
      const ends = [Math.max(least, middle - half), Math.min(most, middle + half)];
      this.group.zoom(ends[0] <= least && ends[1] >= most ? null : ends);
    } else if (event.key === "0" || event.key === "Escape") {
      this.group.zoom(null);
    } else return;
    event.preventDefault();
  }

  set(lines, marks) {
    this.lines = lines;
    this.marks = marks;
    this.key.hidden = !marks.length;
    this.draw();
  }

  stepAt(x) {
    const share = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    const [left, right] = this.span;
    return left + Math.min(1, Math.max(0, share)) * (right - left);
  }

  // What lies in the range, and between which values: the rows' own band does not count, so that
  // one spike does not flatten the rest.
  measure() {
    const range = this.group.range;
    const inside = (points) => points.filter((point) =>
      (!range || (point[STEP] >= range[0] && point[FIRST] <= range[1])) &&
      (!this.log || point[MEAN] > 0));
    this.shown = (this.closer ?? this.lines).map((line, index) => ({ ...line, index, points: inside(line.points) }))
      .filter((line) => line.points.length && !this.group.hidden.has(line.index));
    this.shownMarks = inside(this.marks);
    const every = this.shown.flatMap((line) => line.points).concat(this.shownMarks);
    const all = this.lines.flatMap((line) => line.points);
    let least = Infinity, most = -Infinity, low = Infinity, high = -Infinity;
    for (const point of all) {
      least = Math.min(least, point[STEP]);
      most = Math.max(most, point[STEP]);
    }
    for (const point of every) {
      low = Math.min(low, point[MEAN]);
      high = Math.max(high, point[MEAN]);
    }
    if (this.group.isTime && !this.log) { // a machine's load is seen best against its whole
      low = 0;
      high = this.name.endsWith("(%)") ? 100 : high * 1.05;
    }
    if (high - low <= 1e-9 * Math.max(Math.abs(high), 1e-12)) {
      const margin = Math.abs(high) * 0.1 || 1;
      [low, high] = [this.log ? low / 1.1 : low - margin, high + margin];
    } else if (!this.log && !this.group.isTime) {
      const margin = (high - low) * 0.03;
      [low, high] = [low - margin, high + margin];
    }
    this.whole = [least, most > least ? most : least + 1];
    this.span = range ?? this.whole;
    this.values = [low, high];
    return every.length > 0;
  }

  x(step) {
    const [left, right] = this.span;
    return MARGIN.left + ((step - left) / (right - left)) *
      (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    let [low, high] = this.values;
    let at = Math.min(Math.max(value, low), high);
    if (this.log) [low, high, at] = [low, high, at].map(Math.log10);
    return MARGIN.top + ((high - at) / (high - low)) * (this.height - MARGIN.top - MARGIN.bottom);
  }

  draw() {
    this.width = this.figure.clientWidth - 22;
    if (this.width < 60) return;
    this.height = this.figure.classList.contains("large") ? 300 : 190;
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.drawing.classList.toggle("several", this.lines.length > 1);
    this.cursor ??= null;
    if (!this.measure()) {
      const text = this.log ? "nothing above 0 here" : "nothing here";
      const place = { x: this.width / 2, y: this.height / 2, "text-anchor": "middle" };
      this.drawing.replaceChildren(svg("text", { class: "axis", ...place }, text));
      return;
    }
    const clip = `clip-${this.group.isTime ? "time" : "step"}-${this.name.replace(/\W/g, "_")}`;
    const box = { x: MARGIN.left, y: 0, height: this.height,
      width: this.width - MARGIN.left - MARGIN.right };
    const curves = svg("g", { "clip-path": `url(#${clip})` });
    for (const line of this.shown) curves.append(this.line(line));
    curves.append(...this.drawMarks());
    this.pointer = svg("g");
    this.drawing.replaceChildren(
      svg("clipPath", { id: clip }, svg("rect", box)), ...this.grid(), curves, this.pointer);
    this.point(this.cursor, this.hasTip);
  }

  grid() {
    const bottom = this.height - MARGIN.bottom, right = this.width - MARGIN.right;
    const found = [];
    const levels = (this.log ? logTicks : ticks)(...this.values, Math.floor(this.height / 38));
    for (const value of levels) {
      const y = this.y(value);
      found.push(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }));
      found.push(svg("text",
        { class: "axis", x: MARGIN.left - 6, y: y + 3.5, "text-anchor": "end" }, short(value)));
    }
    const steps = this.group.isTime ? timeTicks : ticks;
    for (const step of steps(...this.span, Math.max(4, Math.floor(this.width / 110)))) {
      const text = this.group.isTime ? clock(step, this.span[1] - this.span[0]) : short(step);
      const x = this.x(step), anchor = x > right - 20 ? "end" : "middle";
      found.push(svg("text",
        { class: "axis", x: anchor === "end" ? right : x, y: bottom + 16, "text-anchor": anchor },
        text));
    }
    found.push(svg("line", { class: "base", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
    return found;
  }

  // The class of a run's colour, where there are several runs.
  colour(line) { return this.lines.length > 1 ? `c${line.index % 8}` : ""; }

  line(line) {
    const { points } = line, several = this.lines.length > 1;
    const group = svg("g", { class: this.colour(line) });
    const path = (values, kind) => svg("polyline", { class: kind,
      points: points.map((p, at) => `${this.x(p[STEP]).toFixed(1)},${this.y(values[at]).toFixed(1)}`)
        .join(" ") });
    if (!several && points.some((point) => point[HIGH] > point[LOW])) {
      const edge = (from, column) => from.map((point) =>
        `${this.x(point[STEP]).toFixed(1)},${this.y(point[column]).toFixed(1)}`);
      const corners = [...edge(points, HIGH), ...edge([...points].reverse(), LOW)];
      group.append(svg("polygon", { class: "band", points: corners.join(" ") }));
    }
    const means = points.map((point) => point[MEAN]);
    const isExact = this.group.isTime || points.length < SMOOTHED ||
      ["learning_rate", "eval_loss", "memory"].includes(this.name);
    const strength = isExact ? 0 : this.group.strength;
    group.append(path(means, strength ? "raw" : "main"));
    if (strength) group.append(path(smooth(means, strength), "main"));
    return group;
  }

  drawMarks() {
    const places = this.shownMarks.map((point) => [this.x(point[STEP]), this.y(point[MEAN])]);
    const found = places.map(([cx, cy]) => svg("circle", { class: "mark", cx, cy, r: 3.5 }));
    if (places.length > 1) {
      found.unshift(svg("polyline", { class: "held", points: places.map(String).join(" ") }));
    }
    return found;
  }

  selectRange(from, to) {
    this.selection?.remove();
    if (Math.abs(to - from) < 6) return;
    const [left, right] = [from, to].map((x) =>
      Math.min(Math.max(x, MARGIN.left), this.width - MARGIN.right)).sort((a, b) => a - b);
    this.selection = svg("rect", { class: "range", x: left, width: right - left, y: MARGIN.top,
      height: this.height - MARGIN.top - MARGIN.bottom });
    this.drawing.append(this.selection);
  }

  // Show the exact values at a step: beside the pointer in its chart, above the others.
  point(step, hasTip) {
    this.cursor = step;
    this.hasTip = hasTip;
    this.tip.hidden = true;
    this.pointer?.replaceChildren();
    if (step === null || !this.shown?.length) {
      this.readout.textContent = "";
      return;
    }
    const found = this.shown
      .map((line) => ({ line, point: line.points[nearest(line.points, step)] }))
      .filter(({ line, point }) => step <= line.points.at(-1)[STEP] || this.shown.length === 1);
    if (!found.length) return;
    const first = found.reduce((one, other) => Math.abs(other.point[STEP] - step) <
      Math.abs(one.point[STEP] - step) ? other : one).point;
    const x = this.x(Math.max(this.span[0], first[STEP]));
    this.pointer.append(svg("line", { class: "crosshair", x1: x, x2: x, y1: MARGIN.top,
      y2: this.height - MARGIN.bottom }));
    for (const { line, point } of found) {
      this.pointer.append(svg("g", { class: this.colour(line) },
        svg("circle", { class: "dot", cx: this.x(point[STEP]), cy: this.y(point[MEAN]), r: 4 })));
    }
    const values = found.map(({ line, point }) =>
      html("span", { class: this.colour(line) }, exact(point[MEAN])));
    this.readout.replaceChildren(...(hasTip ? [] : values));
    if (hasTip) this.showTip(first, found, x);
  }

  showTip(first, found, x) {
    const rows = [html("div", { class: "soft" }, this.where(first))];
    for (const { line, point } of found) {
      const row = html("div");
      if (this.lines.length > 1) {
        row.className = this.colour(line);
        row.append(html("span", { class: "swatch" }), html("bdi", { class: "name" }, line.name), " ");
      }
      row.append(html("b", {}, exact(point[MEAN])));
      if (point[ROWS] > 1) {
        const span = `  ${exact(point[LOW])} to ${exact(point[HIGH])}`;
        row.append(html("span", { class: "soft" }, span));
      }
      rows.push(row);
    }
    if (this.shownMarks.length) {
      const mark = this.shownMarks[nearest(this.shownMarks, first[STEP])];
      rows.push(html("div", {}, html("span", { class: "swatch held" }), "held-out ",
        html("b", {}, exact(mark[MEAN])),
        html("span", { class: "soft" }, `  at step ${whole(mark[STEP])}`)));
    }
    this.tip.replaceChildren(...rows);
    this.tip.hidden = false;
    const [outer, inner] = [this.figure, this.drawing].map((one) => one.getBoundingClientRect());
    const left = inner.left - outer.left + x, room = this.figure.clientWidth;
    const isRight = left + 16 + this.tip.offsetWidth < room;
    this.tip.style.left = `${isRight ? left + 14 : Math.max(0, left - 14 - this.tip.offsetWidth)}px`;
    this.tip.style.top = `${inner.top - outer.top + 14}px`;
  }

  where(point) {
    if (this.group.isTime) return moment(point[STEP]);
    if (point[ROWS] === 1) return `step ${whole(point[STEP])}`;
    return `steps ${whole(point[FIRST])}–${whole(point[STEP])}, mean of ${whole(point[ROWS])} rows`;
  }
}

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][STEP] < step) low = middle + 1; else high = middle;
  }
  const before = low > 0 && step - points[low - 1][STEP] <= points[low][STEP] - step;
  return before ? low - 1 : low;
}
