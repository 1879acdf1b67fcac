// The browser's part of `tatara monitor --web`: asks for what is new, sorts and searches the list.
// No build, nothing from elsewhere. Texts of a run become text nodes here; HTML comes from the
// server alone, which escapes them.

import { Group, ROWS, html, kept } from "/charts.js";

const view = document.getElementById("view");
const note = document.getElementById("note");
const EVERY = 2000; // milliseconds between two questions
const SOON = 250; // the same while a long run is still being read

// ---------------------------------------------------------------- a run, or several

let curves = null, machine = null;

function beginCharts(data) {
  const section = document.getElementById("charts");
  const holder = html("div", { class: "charts live" });
  curves = new Group(holder, false);
  curves.reset = html("button", { type: "button", disabled: "" }, "all steps");
  curves.reset.addEventListener("click", () => curves.zoom(null));
  const slider = html("input", { type: "range", min: 0, max: 1, step: 0.02 });
  slider.value = curves.strength;
  slider.addEventListener("input", () => {
    curves.strength = Number(slider.value);
    kept.set("smooth", curves.strength);
    curves.draw();
  });
  const tools = html("div", { class: "tools" }, html("label", {}, "smoothing", slider),
    curves.reset, html("span", {}, "drag to zoom, double-click for all steps"));
  section.replaceChildren(tools, holder);
  curves.refine = refine;
}

// Where points stand for several rows, a range of steps is asked for again, as exactly as it can be
// drawn; the server has more than it sends.
async function refine(range) {
  const isCoarse = range && [...curves.charts.values()].some((chart) =>
    chart.shown.some((line) => line.points.some((point) => point[ROWS] > 1)));
  if (!isCoarse) return;
  const query = `&from=${Math.floor(range[0])}&to=${Math.ceil(range[1])}`;
  const answer = await fetch(view.dataset.curves + query, { cache: "no-store" });
  if (!answer.ok || curves.range !== range) return;
  const data = await answer.json();
  for (const [name, chart] of curves.charts) {
    chart.closer = linesOf(data, name);
    chart.draw();
  }
}

const linesOf = (data, name) =>
  data.runs.map((run) => ({ name: run.name, points: run.curves[name] ?? [] }));

// The names above several runs hide and show their curves.
view.addEventListener("click", (event) => {
  const button = event.target.closest(".legend button");
  if (!button || !curves) return;
  const index = [...view.querySelectorAll(".legend button")].indexOf(button);
  if (!curves.hidden.delete(index)) curves.hidden.add(index);
  button.toggleAttribute("data-off", curves.hidden.has(index));
  curves.draw();
});

function showCurves(data) {
  if (data.metrics.length) {
    if (!curves) beginCharts(data);
    curves.set(data.metrics,
      (name) => linesOf(data, name),
      (name) => (name === "loss" && data.runs.length === 1 ? data.runs[0].curves.eval_loss ?? [] : []));
  }
}

function showMachine(data) {
  const drawn = Object.entries(data).filter(([, points]) => points.length > 1);
  const part = view.querySelector("[data-part=machine]");
  if (!part || !drawn.length) return;
  if (!machine) {
    const holder = html("div", { class: "charts live" });
    machine = new Group(holder, true);
    part.after(holder);
  }
  machine.set(drawn.map(([name]) => [name, name]), (name) => [{ name, points: data[name] }], () => []);
}

let version = null;

async function lookAtCurves(found) {
  if (!view.dataset.curves || (found.version === version && !machineIsDue())) return;
  const answer = await fetch(view.dataset.curves, { cache: "no-store" });
  if (!answer.ok) return;
  const data = await answer.json();
  version = data.version;
  if (found.version !== drawnVersion) showCurves(data);
  drawnVersion = data.version;
  showMachine(data.machine);
}

let drawnVersion = null, machineAt = 0;

function machineIsDue() {
  const due = Date.now() - machineAt > 8000;
  if (due) machineAt = Date.now();
  return due;
}

// ---------------------------------------------------------------- the list

const order = { column: null, ascending: true, words: "", chosen: new Set() };

function beginList() {
  const wanted = new URLSearchParams(location.search);
  wanted.getAll("compare").forEach((name) => order.chosen.add(name));
  const field = html("input", { type: "search", placeholder: "search: name, phase, model, reason …" });
  field.setAttribute("aria-label", "search the runs");
  field.addEventListener("input", () => { order.words = field.value.toLowerCase(); arrange(); });
  order.link = html("a", { class: "button" }, "compare");
  order.count = html("span");
  document.getElementById("tools").append(field, order.link, order.count);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== field) {
      field.focus();
      event.preventDefault();
    }
  });
}

view.addEventListener("click", (event) => {
  const head = event.target.closest("table.runs th");
  if (!head || !event.target.closest("button")) return;
  const column = head.cellIndex;
  order.ascending = order.column === column ? !order.ascending : head.textContent !== "started";
  order.column = column;
  arrange();
});

view.addEventListener("change", (event) => {
  const name = event.target.closest("table.runs tr")?.dataset.run;
  if (name === undefined) return;
  if (event.target.checked) order.chosen.add(name); else order.chosen.delete(name);
  arrange();
});

function arrange() {
  const body = view.querySelector("table.runs tbody");
  if (!body) return;
  const rows = [...body.rows];
  const key = (row) => (order.column === null
    ? row.dataset.at : row.cells[order.column].dataset.key);
  const numbers = rows.every((row) => key(row) === undefined || !isNaN(Number(key(row))));
  const sorted = [...rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const by = numbers ? Number(a) - Number(b) : a < b ? -1 : a > b ? 1 : 0;
    return order.ascending || order.column === null ? by : -by;
  });
  if (sorted.some((row, at) => row !== rows[at])) {
    const focused = document.activeElement;
    body.append(...sorted);
    focused.focus({ preventScroll: true });
  }
  const words = order.words.split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    row.hidden = !words.every((word) => row.dataset.text.includes(word));
    row.querySelector("input").checked = order.chosen.has(row.dataset.run);
    shown += !row.hidden;
  }
  view.querySelectorAll("table.runs thead th").forEach((head, column) => {
    if (column === order.column) {
      head.setAttribute("aria-sort", order.ascending ? "ascending" : "descending");
    } else head.removeAttribute("aria-sort");
  });
  const chosen = [...order.chosen];
  const most = Number(view.dataset.most), canCompare = chosen.length > 1 && chosen.length <= most;
  order.link.textContent = chosen.length > 1 ? `compare ${chosen.length} runs` : "compare";
  order.link.title = chosen.length > most ? `tick at most ${most} runs` : "tick two runs or more";
  order.link.setAttribute("aria-disabled", !canCompare);
  const query = chosen.map((name) => "run=" + encodeURIComponent(name)).join("&");
  if (canCompare) order.link.href = "/compare?" + query;
  else order.link.removeAttribute("href");
  order.count.textContent = shown < rows.length ? `${shown} of ${rows.length}` : `${shown} runs`;
}

// ---------------------------------------------------------------- asking

const shown = new Map(); // the HTML that each part has

function replace(name, text) {
  const part = view.querySelector(`[data-part="${name}"]`);
  if (!part || shown.get(name) === text) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = text;
  renewChildren(part, fresh.content);
  shown.set(name, text);
  if (name === "list") arrange();
}

// Attributes that a person or this script has set.
const KEPT = new Set(["open", "hidden", "aria-sort", "data-off"]);

// Make an element equal to a fresh one and leave alone what is equal already: focus, selection,
// scrolling and what is unfolded stay, and no click is lost.
function renew(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!KEPT.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  renewChildren(old, fresh);
}

// Children are equal by their place; rows of runs by their run, wherever they were sorted to.
function renewChildren(old, fresh) {
  const rows = new Map([...old.children].map((row) => [row.dataset.run, row]));
  rows.delete(undefined);
  const known = rows.size > 0;
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const row = known && rows.get(child.dataset?.run);
    if (row) {
      renew(row, child);
      rows.delete(row.dataset.run);
    } else if (known) old.append(child);
    else if (next?.nodeName === child.nodeName) {
      const after = next.nextSibling;
      renew(next, child);
      next = after;
    } else old.insertBefore(child, next);
  }
  for (const row of rows.values()) row.remove();
  while (!known && next) {
    const after = next.nextSibling;
    next.remove();
    next = after;
  }
}

const title = document.title;

// How far a run is, for a tab in the background.
function showTitle() {
  const bar = view.querySelector("progress"), phases = view.querySelectorAll("h1 .phase");
  if (phases.length !== 1) return;
  const share = bar && bar.value < bar.max ? `${Math.floor((100 * bar.value) / bar.max)} % ` : "";
  document.title = `${share}${phases[0].textContent} · ${title}`;
}

async function look() {
  let wait = EVERY;
  if (!document.hidden) {
    try {
      const answer = await fetch(view.dataset.parts, { cache: "no-store" });
      if (!answer.ok && answer.status !== 404) throw new Error(answer.status);
      if (answer.ok) {
        const found = await answer.json();
        for (const [name, text] of Object.entries(found.parts)) replace(name, text);
        showTitle();
        await lookAtCurves(found);
        if (found.reading) wait = SOON;
      }
      note.textContent = answer.ok
        ? "" : "this run is no longer there: what is shown is the last of it";
    } catch (problem) {
      note.textContent = "no answer from the monitor: what is shown is the last it sent";
      wait = 2 * EVERY;
    }
  }
  clearTimeout(look.next);
  look.next = setTimeout(look, wait);
}

if (view.querySelector("[data-part=list]")) {
  beginList();
  arrange();
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
