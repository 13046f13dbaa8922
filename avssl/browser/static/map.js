// The map: one point per clip on two canvases, one for each side, which light up together.

import { ask } from "/static/api.js";
import { make, makeCard } from "/static/cards.js";
import { linkToNeighbors } from "/static/neighbors.js";
import { currentState, go, parseState } from "/static/state.js";

const SIDES = ["video", "audio"];
const MARGIN = 16; // pixels around the points
const NEAR = 18; // pixels from the pointer within which a point is meant
const NUM_COLORS = 12; // of style.css: --point-0 ...; further labels are gray
const SHAPES = ["circle", "square", "triangle"]; // colors alone do not tell all labels apart for every eye
const PREVIEW_MILLISECONDS = 100;

const byId = (id) => document.getElementById(id);
const canvases = Object.fromEntries(SIDES.map((side) => [side, byId(`map-${side}`)]));
const pictures = Object.fromEntries(SIDES.map((side) => [side, document.createElement("canvas")])); // the points alone
const sizes = { video: [0, 0], audio: [0, 0] }; // of the canvases in CSS pixels, as they were drawn
const maps = new Map(); // "store by" -> answer of the server: drawing one anew may take long

let map = null; // the answer that is shown
let groups = []; // per legend entry: {name, count, key, style}
let query = ""; // the state's, when the map was shown last
let chosen = -1; // the point that is lit up in both: at first the query
let preview = 0;
let context = null; // {about, attempt}

/** Show the map that STATE asks for. */
export async function showMap(state, about, { signal, say, attempt }) {
  context = { about, attempt };
  showChoices(state, about);
  const key = `${state.store} ${state.map}`;
  if (!maps.has(key)) {
    say("drawing the map…");
    maps.set(key, await ask("map", { store: state.store, by: state.map }, signal));
  }
  if (map !== maps.get(key) || query !== state.query) {
    map = maps.get(key);
    query = state.query;
    chosen = map.ids.indexOf(Number(query || NaN));
    byId("map-clip").replaceChildren();
    if (chosen >= 0) showChosen();
  }
  byId("map-note").textContent = map.note;
  say(`${map.ids.length.toLocaleString("en")} of ${map.of.toLocaleString("en")} clips`);
  showLegend(state);
  drawAll();
}

function showChoices(state, about) {
  for (const button of byId("map-method").children) {
    const lacking = button.dataset.method === "umap" && !about.umap;
    button.setAttribute("aria-pressed", String(button.dataset.method === state.map));
    button.setAttribute("aria-disabled", String(lacking));
    button.title = lacking ? "UMAP is not installed where the server runs: pip install 'avssl[umap]'" : "";
  }
  for (const button of byId("map-color").children) {
    button.setAttribute("aria-pressed", String(button.dataset.color === state.color));
  }
}

// -- Legend --

/** Groups in the order of their size, the largest first, as these get the colors. */
function makeGroups(state) {
  const byLabel = state.color === "label";
  const of = byLabel ? map.labels : map.clusters;
  const names = byLabel ? map.label_names : Array.from({ length: map.num_clusters }, (_, i) => `cluster ${i + 1}`);
  const counts = names.map(() => 0);
  for (const number of of) if (number >= 0) counts[number] += 1;
  const order = names.map((_, i) => i).sort((a, b) => counts[b] - counts[a] || a - b);
  return order.map((number, place) => ({
    number,
    name: names[number],
    count: counts[number],
    key: byLabel ? names[number] : String(number),
    style: place < NUM_COLORS ? place : null,
  }));
}

function showLegend(state) {
  groups = makeGroups(state);
  const byLabel = state.color === "label";
  const lit = byLabel ? state.label : state.cluster;
  byId("legend-title").textContent = byLabel ? "Labels" : "Clusters";
  const focused = byId("legend").contains(document.activeElement) ? document.activeElement.dataset.key : null;
  byId("legend").replaceChildren(...groups.map((group) => makeLegendEntry(group, lit)));
  const without = byLabel ? map.labels.filter((number) => number < 0).length : 0;
  if (groups.length && without) byId("legend").append(make("li", { className: "quiet", textContent: `without a label: ${without}` }));
  if (groups.length === 0) byId("legend").append(make("li", { className: "quiet", textContent: "These clips have no labels." }));
  if (focused !== null) [...byId("legend").querySelectorAll("button")].find(({ dataset }) => dataset.key === focused)?.focus();
}

function makeLegendEntry(group, lit) {
  const swatch = make("span", { className: `swatch ${group.style === null ? "rest" : SHAPES[group.style % 3]}` });
  if (group.style !== null) swatch.style.background = `var(--point-${group.style})`;
  const name = make("span", { className: "legend-name", textContent: group.name, title: group.name });
  const button = make("button", { type: "button" }, swatch, name, make("span", { className: "count", textContent: group.count }));
  button.dataset.key = group.key;
  button.setAttribute("aria-pressed", String(group.key === lit));
  return make("li", {}, button);
}

function highlight({ target }) {
  const key = target.closest("button")?.dataset.key;
  if (key === undefined) return;
  const state = currentState();
  const field = state.color === "label" ? "label" : "cluster";
  go({ [field]: state[field] === key ? "" : key });
}

// -- Drawing --

function drawAll() {
  if (!map) return;
  for (const side of SIDES) {
    drawPoints(side);
    drawMarks(side);
  }
}

/** Where a point lies on a canvas, in CSS pixels; null when the clip lacks the side. */
function placeOf(side, i) {
  const point = map[side][i];
  const [width, height] = sizes[side];
  const length = Math.min(width, height) - 2 * MARGIN; // one scale for both axes: distances can be compared
  return point && [(width - length) / 2 + point[0] * length, (height - length) / 2 + point[1] * length];
}

/** All points, once, onto a canvas that is not seen: lighting one up then copies a picture only. */
function drawPoints(side) {
  const canvas = pictures[side];
  const { clientWidth, clientHeight } = canvases[side];
  const ratio = devicePixelRatio;
  sizes[side] = [clientWidth, clientHeight];
  for (const each of [canvas, canvases[side]]) {
    each.width = Math.round(clientWidth * ratio);
    each.height = Math.round(clientHeight * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const state = currentState();
  const byLabel = state.color === "label";
  const groupOf = byLabel ? map.labels : map.clusters;
  const members = new Map([[-1, []]]); // number of the group -> its points
  groupOf.forEach((number, i) => (members.get(number) ?? members.set(number, []).get(number)).push(i));
  const lit = byLabel ? state.label : state.cluster;
  const layers = [...groups].reverse(); // the gray ones below, the lit one above all
  layers.sort((a, b) => (a.key === lit) - (b.key === lit));
  drawGroup(pen, side, members.get(-1), { color: "--point-rest", faint: lit !== "" });
  for (const group of layers) {
    const isLit = group.key === lit;
    drawGroup(pen, side, members.get(group.number) ?? [], {
      color: group.style === null ? (isLit ? "--accent" : "--point-rest") : `--point-${group.style}`,
      shape: SHAPES[(group.style ?? 0) % 3],
      faint: lit !== "" && !isLit,
      size: isLit ? 4.5 : 3,
    });
  }
}

function drawGroup(pen, side, members, { color, shape = "circle", faint = false, size = 3 }) {
  pen.fillStyle = colorOf(color);
  pen.globalAlpha = faint ? 0.15 : 0.8;
  pen.beginPath();
  for (const i of members) {
    const place = placeOf(side, i);
    if (place) traceShape(pen, shape, ...place, size);
  }
  pen.fill();
}

function traceShape(pen, shape, x, y, size) {
  if (shape === "square") {
    pen.rect(x - 0.9 * size, y - 0.9 * size, 1.8 * size, 1.8 * size);
  } else if (shape === "triangle") {
    pen.moveTo(x, y - 1.2 * size);
    pen.lineTo(x + 1.15 * size, y + 0.9 * size);
    pen.lineTo(x - 1.15 * size, y + 0.9 * size);
    pen.closePath();
  } else {
    pen.moveTo(x + size, y);
    pen.arc(x, y, size, 0, 2 * Math.PI);
  }
}

/** The points and, above them, a ring around the chosen one. */
function drawMarks(side) {
  const canvas = canvases[side];
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (canvas.width && canvas.height) pen.drawImage(pictures[side], 0, 0);
  const place = chosen < 0 ? null : placeOf(side, chosen);
  if (!place) return;
  pen.scale(devicePixelRatio, devicePixelRatio);
  for (const [width, color] of [[5, "--ground"], [2.5, "--text"]]) {
    pen.beginPath();
    pen.arc(...place, 8, 0, 2 * Math.PI);
    pen.lineWidth = width;
    pen.strokeStyle = colorOf(color);
    pen.stroke();
  }
}

function colorOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

// -- Choosing a point --

function choose(i) {
  if (i === chosen) return;
  chosen = i;
  SIDES.forEach(drawMarks);
  clearTimeout(preview);
  preview = setTimeout(showChosen, PREVIEW_MILLISECONDS); // not for each point that the pointer crosses
}

async function showChosen() {
  const wanted = chosen;
  await context.attempt(async () => {
    const clip = await ask(`clips/${map.ids[wanted]}`);
    if (wanted !== chosen) return;
    byId("map-clip").replaceChildren(makeCard(clip, { tag: "div", href: linkToNeighbors(clip, stateToOpen(), context.about) }));
    byId("map-said").textContent = clip.label === null ? clip.path : `${clip.path}, label ${clip.label}`;
  });
}

/** A label that is lit up on the map does not filter the neighbors of a clip opened from it. */
function stateToOpen() {
  return { ...currentState(), label: "", cluster: "" };
}

async function openChosen() {
  if (chosen < 0) return;
  await context.attempt(async () => {
    const clip = await ask(`clips/${map.ids[chosen]}`);
    go(parseState(linkToNeighbors(clip, stateToOpen(), context.about).slice(1)));
  });
}

/** The point nearest to (x, y), nearer than MOST; -1 when there is none. DISTANCE(dx, dy) measures it. */
function nearest(side, [x, y], most, distance = Math.hypot) {
  let best = -1;
  let least = most;
  for (let i = 0; i < map.ids.length; i += 1) {
    const place = placeOf(side, i);
    if (!place) continue;
    const far = distance(place[0] - x, place[1] - y);
    if (far < least) [best, least] = [i, far];
  }
  return best;
}

/** How far a step by an arrow key is: only points within 45 degrees of its direction, straight ahead rather than aside. */
function stepLength([right, down]) {
  return (dx, dy) => {
    const ahead = dx * right + dy * down;
    const aside = Math.abs(dx * down - dy * right);
    return ahead > 0.5 && aside <= ahead ? ahead + 2 * aside : Infinity;
  };
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function stepByKey(side, event) {
  if (!map || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Enter") openChosen();
  if (!ARROWS[event.key]) return;
  event.preventDefault();
  const from = chosen < 0 ? null : placeOf(side, chosen);
  const next = from
    ? nearest(side, from, Infinity, stepLength(ARROWS[event.key]))
    : nearest(side, sizes[side].map((size) => size / 2), Infinity);
  if (next >= 0) choose(next);
}

function listenTo(side) {
  const canvas = canvases[side];
  canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
    const near = map ? nearest(side, [offsetX, offsetY], NEAR) : -1;
    canvas.classList.toggle("on-point", near >= 0);
    if (near >= 0) choose(near);
  });
  canvas.addEventListener("click", ({ offsetX, offsetY }) => {
    const near = map ? nearest(side, [offsetX, offsetY], NEAR) : -1;
    if (near < 0) return;
    choose(near);
    openChosen();
  });
  canvas.addEventListener("keydown", (event) => stepByKey(side, event));
}

SIDES.forEach(listenTo);
byId("legend").addEventListener("click", highlight);
byId("map-method").addEventListener("click", ({ target }) => {
  if (target.dataset.method && target.getAttribute("aria-disabled") !== "true") go({ map: target.dataset.method });
});
byId("map-color").addEventListener("click", ({ target }) => {
  if (target.dataset.color) go({ color: target.dataset.color });
});
const resized = new ResizeObserver(drawAll);
SIDES.forEach((side) => resized.observe(canvases[side]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
