// The neighbors of one clip or uploaded file, of one run or of two side by side.

import { asClip, ask, obstacle } from "/static/api.js";
import { make, makeCard, makeEndless, walkGrid } from "/static/cards.js";
import { linkTo, WAYS } from "/static/state.js";

const MEANING = {
  v2a: "Clips whose sound fits the picture of this one.",
  a2v: "Clips whose picture fits the sound of this one.",
  v2v: "Clips that look like this one.",
  a2a: "Clips that sound like this one.",
  agreement: "Clips that look and sound like this one, beside those that do only one of the two.",
};
const GROUPS = {
  positives: ["Positives", "alike in picture and in sound", "Nothing found."],
  looks_alike: [
    "Look-alikes",
    "look alike, sound different",
    "No clip looks more alike than 95 % of the pairs of this set and sounds less alike than half of them.",
  ],
  sounds_alike: [
    "Sound-alikes",
    "sound alike, look different",
    "No clip sounds more alike than 95 % of the pairs of this set and looks less alike than half of them.",
  ],
};

const section = document.getElementById("neighbors");
const answersBox = document.getElementById("answers");
const more = section.querySelector(".more");
const queries = new Map(); // id -> clip or uploaded file, as far as they are known here

let answers = []; // one per run shown: {store, next, groups: {name: {list, ids, count}}}, or {store, next: null}
let shown = {}; // {state, about, by, signal, say, attempt}

export function rememberQuery(clip) {
  queries.set(String(clip.id), clip);
}

/** The link to a clip's neighbors: the way to search stays when this clip can be asked by it. */
export function linkToNeighbors(clip, state, about) {
  const stays = state.by && !obstacle(state.by, clip, about.stores[state.store]);
  return linkTo({ ...state, view: "neighbors", query: String(clip.id), by: stays ? state.by : "" });
}

/** Show what STATE asks; say(text) announces it, attempt(work) tells the user what goes wrong. */
export async function showNeighbors(state, about, { signal, say, attempt }) {
  answersBox.setAttribute("aria-busy", "true");
  more.hidden = true;
  try {
    shown = { state, about, signal, say, attempt, by: state.by };
    await askQuery(state.compare ? [0, 1] : [state.store]);
  } catch (error) {
    if (error.name !== "AbortError") answersBox.replaceChildren();
    throw error;
  } finally {
    if (!signal.aborted) answersBox.removeAttribute("aria-busy");
  }
}

async function askQuery(stores) {
  const { state, about, signal } = shown;
  const offers = stores.map((store) => about.stores[store]);
  const query = await findQuery(state.query, signal);
  shown.by ||= (query && WAYS.find((way) => !obstacle(way, query, offers[0]))) || WAYS[0];
  showQuery(query);
  showWays(query, offers);
  const found = await Promise.all(stores.map((store) => fetchAnswer(store, 0).catch(asLacking)));
  const some = found.find(({ problem }) => !problem);
  if (!some) throw found[0].problem;
  if (!query) {
    const told = asClip(some.query);
    rememberQuery(told);
    showQuery(told);
    showWays(told, offers);
  }
  answers = stores.map((store, i) => makeAnswer(store, found[i]));
  answersBox.replaceChildren(...answers.map((answer) => answer.element));
  answersBox.classList.toggle("compared", state.compare);
  showSharedAndMore();
  shown.say(inWords());
}

/** The clip with this id; null for an uploaded file that only the server knows: its answer will tell. */
async function findQuery(id, signal) {
  if (!queries.has(id) && !id.startsWith("u-")) rememberQuery(await ask(`clips/${encodeURIComponent(id)}`, {}, signal));
  return queries.get(id) ?? null;
}

function showQuery(query) {
  const box = document.getElementById("query-card");
  if (query && box.firstChild?.dataset.id === String(query.id)) return; // its pictures need not come again
  box.replaceChildren(...(query ? [makeCard(query, { tag: "div" })] : []));
  const name = query ? ` of ${query.path.split("/").pop()}` : "";
  document.getElementById("neighbors-title").textContent = `Neighbors${name}`;
  document.title = `Neighbors${name} – avssl`;
  document.getElementById("query-facts").textContent = query ? factsOf(query) : "";
}

function factsOf(query) {
  const facts = [query.path];
  if ("seconds" in query) facts.push(`your file, ${query.seconds.toFixed(1)} s`);
  if (query.label !== null) facts.push(`label ${query.label}`);
  if (!query.has_video) facts.push("no video");
  if (!query.has_audio) facts.push("no audio");
  return facts.join(" · ");
}

/** The buttons of the ways to search; those that cannot be asked stay readable and say why. */
function showWays(query, stores) {
  const reasons = new Map(); // reason -> names of the ways
  for (const button of document.querySelectorAll("#ways button")) {
    const way = button.dataset.by;
    const reason = (query && stores.map((store) => obstacle(way, query, store)).find(Boolean)) || "";
    button.setAttribute("aria-pressed", String(way === shown.by));
    button.setAttribute("aria-disabled", String(reason !== ""));
    button.title = reason || MEANING[way];
    if (reason) reasons.set(reason, [...(reasons.get(reason) ?? []), button.textContent]);
  }
  document.getElementById("way-meaning").textContent = MEANING[shown.by];
  const line = document.getElementById("way-reasons");
  line.hidden = reasons.size === 0;
  line.textContent = [...reasons].map(([reason, ways]) => `Not possible: ${ways.join(", ")} (${reason}).`).join(" ");
}

/** What stands for the answer of a run that lacks the clip: the other run still shows its own. */
function asLacking(error) {
  if (error.status !== 404) throw error;
  return { problem: error };
}

function fetchAnswer(store, offset) {
  const { state, by, signal } = shown;
  const asked = { query: state.query, store, label: state.label, exact: state.exact };
  if (by === "agreement") return ask("agreement", { ...asked, limit: 8 }, signal);
  return ask("neighbors", { ...asked, by, offset, limit: 24 }, signal);
}

/**
 * The part of the page that holds one run's answer: its name, how it was searched, and a list for each group; of a run
 * that lacks the clip its name and that it does.
 */
function makeAnswer(store, found) {
  const heading = make("h2", { textContent: shown.about.stores[store].short, title: shown.about.stores[store].name });
  if (found.problem) {
    const problem = make("p", { className: "empty", textContent: found.problem.message });
    return { store, next: null, element: make("section", { className: "answer" }, heading, problem) };
  }
  const answer = { store, next: found.next ?? null, groups: {} };
  const names = shown.by === "agreement" ? Object.keys(GROUPS) : ["neighbors"];
  const lists = make("div", { className: names.length > 1 ? "columns" : "" });
  for (const name of names) lists.append(makeGroup(answer, name));
  answer.element = make(
    "section",
    { className: "answer" },
    heading,
    make("p", { className: "how", textContent: howSearched(found) }),
    lists,
  );
  addNeighbors(answer, found);
  return answer;
}

function makeGroup(answer, name) {
  const list = make("ul", { className: "grid" });
  const count = make("p", { className: "in-both", hidden: true });
  const nothing = make("p", { className: "empty", textContent: GROUPS[name]?.[2] ?? "Nothing found.", hidden: true });
  answer.groups[name] = { list, count, nothing, ids: new Set() };
  walkGrid(list);
  if (!GROUPS[name]) return make("div", {}, count, list, nothing);
  const [title, meaning] = GROUPS[name];
  const heading = make("h3", { textContent: title });
  return make("div", { className: "column" }, heading, make("p", { className: "quiet", textContent: meaning }), count, list, nothing);
}

function addNeighbors(answer, found) {
  for (const [name, group] of Object.entries(answer.groups)) {
    for (const neighbor of found[name]) {
      if (group.ids.has(neighbor.id)) continue; // pages of an approximate search may overlap
      group.ids.add(neighbor.id);
      rememberQuery(neighbor);
      const href = linkToNeighbors(neighbor, { ...shown.state, by: shown.by }, shown.about);
      group.list.append(makeCard(neighbor, { href, by: name in GROUPS ? name : shown.by }));
    }
    group.nothing.hidden = group.ids.size > 0;
  }
  answer.next = found.next ?? null;
}

function howSearched(found) {
  const milliseconds = `${found.milliseconds.toFixed(1)} ms`;
  if (found.exact) return `exact search · ${milliseconds}`;
  const recall = found.recall === null ? "recall not measured" : `measured recall ${found.recall.toFixed(3)}`;
  return `approximate search · ${recall} · ${milliseconds}`;
}

function showSharedAndMore() {
  more.hidden = answers.every((answer) => answer.next === null);
  if (answers.filter(({ groups }) => groups).length < 2) return;
  for (const [i, answer] of answers.entries()) {
    for (const [name, group] of Object.entries(answer.groups)) markShared(group, answers[1 - i].groups[name].ids);
  }
}

function markShared(group, others) {
  const shared = [...group.ids].filter((id) => others.has(id)).length;
  group.count.hidden = false;
  group.count.textContent = `${shared} of ${group.ids.size} are in both runs`;
  for (const card of group.list.children) {
    if (!others.has(Number(card.dataset.id)) || card.classList.contains("shared")) continue;
    card.classList.add("shared");
    card.querySelector(".details").append(make("span", { className: "shared-mark", textContent: "in both" }));
  }
}

function inWords() {
  const complete = answers.filter(({ groups }) => groups);
  const groups = Object.entries(complete[0].groups).map(([name, { ids }]) => `${ids.size} ${GROUPS[name]?.[0].toLowerCase() ?? "neighbors"}`);
  return complete.length > 1 ? `${groups.join(", ")} of each run` : groups.join(", ");
}

async function loadMore() {
  const { attempt, signal } = shown;
  return attempt(async () => {
    const waiting = answers.filter((answer) => answer.next !== null);
    const found = await Promise.all(waiting.map((answer) => fetchAnswer(answer.store, answer.next)));
    if (signal.aborted) return;
    waiting.forEach((answer, i) => addNeighbors(answer, found[i]));
    showSharedAndMore();
    shown.say(inWords());
  });
}

makeEndless(more, loadMore);
