// The page: filters, the grid of clips, files brought by the user, and which view is shown.

import { ask, upload } from "/static/api.js";
import { makeCard, makeEndless, make, walkGrid } from "/static/cards.js";
import { showMap } from "/static/map.js";
import { linkToNeighbors, rememberQuery, showNeighbors } from "/static/neighbors.js";
import { keepFile, stop } from "/static/player.js";
import { beginSelecting } from "/static/select.js";
import { currentState, go, linkTo, onState, VIEWS } from "/static/state.js";

const POLL_MILLISECONDS = 2000;
const TYPING_MILLISECONDS = 250;
const TITLES = { clips: "Clips", neighbors: "Neighbors", map: "Map" };

const byId = (id) => document.getElementById(id);
const grid = byId("clips-grid");
const moreClips = byId("clips").querySelector(".more");

let about; // what the server offers
let leaving = new AbortController(); // aborts what a state that was left still waits for
let before = null; // the state that was shown last
let clips = { key: null, ids: new Set(), next: null, total: 0, left: null }; // what the grid holds

// -- States --

async function show(state, how) {
  if (state.store >= about.stores.length) return go({ store: 0 }, "mend"); // a link of when there were two runs
  if (state.compare && about.stores.length < 2) return go({ compare: false }, "mend");
  leaving.abort();
  leaving = new AbortController();
  stop();
  hideProblem();
  if (before?.view === "clips") clips.left = firstInWindow();
  showFrame(state);
  const moved = before && (before.view !== state.view || before.query !== state.query);
  before = state;
  if (moved) arrive(state, how);
  await attempt(() => showView(state, leaving.signal));
}

function showView(state, signal) {
  const help = { signal, say, attempt };
  if (state.view === "neighbors") return showNeighbors(state, about, help);
  if (state.view === "map") return showMap(state, about, help);
  return showClips(state, signal);
}

/** What belongs to every view: which one is seen, the links to the others, the filters. */
function showFrame(state) {
  for (const view of VIEWS) {
    const link = byId(`to-${view}`);
    byId(view).hidden = view !== state.view;
    link.href = linkTo({ ...state, view });
    if (view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("to-neighbors").hidden = !state.query;
  document.title = `${TITLES[state.view]} – avssl`;
  say("");
  showFilters(state);
}

/** After a step to another view or query: its top and its heading; back in the grid: the place that was left. */
function arrive(state, how) {
  const comesBack = how === "back" && state.view === "clips";
  if (comesBack && clips.left) scrollBy(0, clips.left.card.getBoundingClientRect().top - clips.left.top);
  else scrollTo(0, 0);
  if (!comesBack) byId(`${state.view}-title`).focus({ preventScroll: true });
}

/** A card and where it stands: in pixels of the page a place would change, as cards out of sight have a guessed height. */
function firstInWindow() {
  for (const card of grid.children) {
    const { top, bottom } = card.getBoundingClientRect();
    if (bottom > 0) return { card, top };
  }
  return null;
}

function say(text) {
  byId("status").textContent = text;
}

/** Run WORK; when it fails, its message is shown, and false returned. What was left in between may fail silently. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") {
      showProblem(error.message);
      return false;
    }
  }
  return true;
}

function showProblem(message) {
  byId("problem").querySelector("p").textContent = message;
  byId("problem").hidden = false;
}

function hideProblem() {
  byId("problem").hidden = true;
}

// -- Filters --

function showFilters(state) {
  const two = about.stores.length > 1;
  const index = about.stores[state.store].index;
  byId("name-field").hidden = state.view !== "clips";
  byId("label-field").hidden = about.labels.length === 0;
  byId("store-field").hidden = !two || state.view === "clips" || (state.view === "neighbors" && state.compare);
  byId("exact-field").hidden = state.view !== "neighbors";
  byId("compare-field").hidden = !two || state.view !== "neighbors";
  if (document.activeElement !== byId("name")) byId("name").value = state.name;
  byId("tag-field").hidden = state.view !== "clips" || byId("tagged").length < 2;
  byId("tagged").value = state.tag;
  byId("label").value = state.label;
  byId("store").value = String(state.store);
  byId("compare").checked = state.compare;
  byId("exact").checked = state.exact || index.state === "exact";
  byId("exact").disabled = index.state === "exact";
  byId("exact-field").title = index.state === "exact" ? "" : "Compare with every clip: slower, and misses none";
  byId("exact-why").textContent = index.state === "exact" ? `(${index.why})` : "";
}

function fillFilters() {
  const labels = about.labels.map(({ name, clips }) => make("option", { value: name, textContent: `${name} (${clips})` }));
  byId("label").replaceChildren(make("option", { value: "", textContent: "all" }), ...labels);
  byId("store").replaceChildren(...about.stores.map(({ short }, i) => make("option", { value: String(i), textContent: short })));
}

/** The tags that some clip has; the one that is asked for stays, though none has it any more. */
function fillTags(counts) {
  const { tag } = currentState();
  const known = tag in counts || !tag ? counts : { ...counts, [tag]: 0 };
  const options = Object.entries(known).map(([name, num]) => make("option", { value: name, textContent: `${name} (${num})` }));
  byId("tagged").replaceChildren(make("option", { value: "", textContent: "all" }), ...options);
  if (about) showFilters(currentState());
}

function listenToFilters() {
  let typing = 0;
  byId("name").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ name: byId("name").value.trim() }, "typing"), TYPING_MILLISECONDS);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("label").addEventListener("change", () => go({ label: byId("label").value }));
  byId("tagged").addEventListener("change", () => go({ tag: byId("tagged").value }));
  byId("store").addEventListener("change", () => go({ store: Number(byId("store").value) }));
  byId("exact").addEventListener("change", () => go({ exact: byId("exact").checked }));
  byId("compare").addEventListener("change", () => go({ compare: byId("compare").checked }));
  byId("ways").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button && button.getAttribute("aria-disabled") !== "true") go({ by: button.dataset.by });
  });
}

// -- The grid of clips --

async function showClips(state, signal) {
  const key = linkTo({ ...state, query: "", by: "" });
  if (clips.key !== key) {
    moreClips.hidden = true; // of the grid that is left
    const page = await ask("clips", { label: state.label, name: state.name, tag: state.tag, limit: 48 }, signal);
    clips = { key, ids: new Set(), next: null, total: page.total, left: null };
    grid.replaceChildren();
    addClips(page);
  }
  moreClips.hidden = clips.next === null;
  sayClips();
}

function addClips(page) {
  for (const clip of page.clips) {
    if (clips.ids.has(clip.id)) continue;
    clips.ids.add(clip.id);
    rememberQuery(clip);
    grid.append(makeCard(clip, { href: linkToNeighbors(clip, currentState(), about) }));
  }
  clips.next = page.next;
  moreClips.hidden = page.next === null;
  byId("clips").querySelector(".empty").hidden = clips.ids.size > 0;
}

function sayClips() {
  say(`${clips.total.toLocaleString("en")} ${clips.total === 1 ? "clip" : "clips"}`);
}

async function loadMoreClips() {
  const { label, name, tag } = currentState();
  const { signal } = leaving;
  return attempt(async () => {
    addClips(await ask("clips", { label, name, tag, offset: clips.next, limit: 48 }, signal));
  });
}

// -- Files brought by the user --

async function searchWith(file) {
  await heard;
  if (!byId("progress").hidden) return; // one at a time
  if (!about) return showProblem("The server did not say what it offers: reload this page.");
  hideProblem();
  const most = about.uploads.max_bytes;
  if (file.size > most) {
    showProblem(`${file.name} has ${inMegabytes(file.size)}, and the server takes at most ${inMegabytes(most)}.`);
    return;
  }
  byId("progress").textContent = `Embedding ${file.name}…`;
  byId("progress").hidden = false;
  byId("choose-file").disabled = true;
  await attempt(async () => {
    const clip = await upload(file);
    keepFile(clip.id, file);
    rememberQuery(clip);
    go({ view: "neighbors", query: clip.id, by: "" });
  });
  byId("progress").hidden = true;
  byId("choose-file").disabled = false;
}

function inMegabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(1)} MB`;
}

function listenToFiles() {
  const input = byId("file");
  byId("choose-file").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) searchWith(file);
    input.value = ""; // the same file can be chosen again
  });
  const bringsFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!bringsFile(event)) return;
    event.preventDefault();
    byId("drop-here").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) byId("drop-here").hidden = true;
  });
  addEventListener("drop", (event) => {
    if (!bringsFile(event)) return;
    event.preventDefault();
    byId("drop-here").hidden = true;
    searchWith(event.dataTransfer.files[0]);
  });
}

// -- The state of the index --

function isBuilding() {
  return about.stores.some(({ index }) => index.state === "building");
}

function showIndex() {
  const told = about.stores.filter(({ index }) => index.state === "building" || index.state === "failed");
  byId("index-status").hidden = told.length === 0;
  byId("index-status").textContent = told.map(({ short, index }) => `${short}: ${index.why}`).join(" ");
  byId("index-status").classList.toggle("failed", told.some(({ index }) => index.state === "failed"));
}

async function watchIndex() {
  while (isBuilding()) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
    await attempt(async () => {
      about = await askAbout();
      showFilters(currentState());
      showIndex();
    });
  }
}

/** What the server offers; the runs also get names that fit into a line: their folders without what both share. */
async function askAbout() {
  const found = await ask("about");
  const paths = found.stores.map(({ name }) => name.split("/"));
  let same = 0;
  while (paths.every((parts) => parts.length > same + 1 && parts[same] === paths[0][same])) same += 1;
  found.stores.forEach((store, i) => (store.short = paths[i].slice(same).join("/")));
  return found;
}

/** What is there before the server has answered can be used at once; the rest is shown with its answer. */
async function begin() {
  listenToFilters();
  listenToFiles();
  walkGrid(grid);
  makeEndless(moreClips, loadMoreClips);
  byId("problem").querySelector("button").addEventListener("click", hideProblem);
  if (!(await heard)) return;
  beginSelecting({ attempt, onTags: fillTags });
  onState(show);
  watchIndex();
  await show(currentState(), "go");
}

const heard = attempt(async () => {
  about = await askAbout();
  fillFilters();
  byId("filters").hidden = false;
  showIndex();
});
begin();
