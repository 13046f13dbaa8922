// What the page shows is one object, and the URL's query string holds all of it: every state has a link.

export const VIEWS = ["clips", "neighbors", "map"];
export const WAYS = ["v2a", "a2v", "v2v", "a2a", "agreement"];

const DEFAULTS = {
  view: "clips",
  query: "", // id of a clip, or u-... of an uploaded file
  by: "", // a way to search; "" = the first that the query can be asked by
  label: "", // only clips with this label; on the map: the label that is highlighted
  name: "", // only clips whose path holds this
  tag: "", // only clips with this tag, in the grid
  exact: false,
  store: 0,
  compare: false, // the answers of both runs side by side
  map: "pca",
  color: "label",
  cluster: "", // the cluster that is highlighted on the map
};

const ALLOWED = { view: VIEWS, by: ["", ...WAYS], map: ["pca", "umap"], color: ["label", "cluster"] };

/** The state that a query string such as "?view=neighbors&query=12&by=v2a" holds; what it does not say is default. */
export function parseState(search) {
  const state = { ...DEFAULTS };
  for (const [key, text] of new URLSearchParams(search)) {
    if (!(key in DEFAULTS)) continue;
    const value = parseValue(text, DEFAULTS[key]);
    if (!ALLOWED[key] || ALLOWED[key].includes(value)) state[key] = value;
  }
  if (state.view === "neighbors" && !state.query) state.view = "clips";
  return state;
}

function parseValue(text, fallback) {
  if (typeof fallback === "boolean") return text === "1";
  if (typeof fallback === "number") return /^\d+$/.test(text) ? Number(text) : fallback;
  return text;
}

/** The link to a state: "/" or "/?...", without what is default. */
export function linkTo(state) {
  const parameters = new URLSearchParams();
  for (const [key, fallback] of Object.entries(DEFAULTS)) {
    const value = state[key];
    if (value !== fallback) parameters.set(key, value === true ? "1" : String(value));
  }
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

let state = parseState(location.search);
let listener = () => {};

export function currentState() {
  return state;
}

/** Call CHANGE(state, how) at every change; how = "go", "back" (also forward), "typing" or "mend". */
export function onState(change) {
  listener = change;
}

/** Go to the current state with CHANGES: a step of the history, but for "mend", and one for all letters of a text. */
export function go(changes, how = "go") {
  const url = linkTo({ ...state, ...changes });
  const stays = how === "mend" || url === linkTo(state) || (how === "typing" && history.state?.typing);
  history[stays ? "replaceState" : "pushState"]({ typing: how === "typing" }, "", url);
  enter(how);
}

function enter(how) {
  state = parseState(location.search);
  listener(state, how);
}

addEventListener("popstate", () => {
  if (linkTo(parseState(location.search)) !== linkTo(state)) enter("back"); // else it was the link to #main
});
history.scrollRestoration = "manual"; // the views come back before their pictures do

document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="/"]');
  if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(parseState(new URL(link.href).search));
});
