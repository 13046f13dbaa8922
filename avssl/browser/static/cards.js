// A clip as a card: poster, spectrogram, name, label and scores. Whatever comes from the data is set as text.

import { canPlay, makePlayable } from "/static/player.js";
import { makeBox, showTags } from "/static/select.js";

/** An element with properties and children; what is null among the children is left out. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * A card for a clip, or for a neighbor when it has scores.
 *
 * @param clip  a clip, a neighbor or an uploaded file
 * @param options.tag  "li" in a list
 * @param options.href  where a click leads; null for the query itself, which leads nowhere
 * @param options.by  the way a neighbor was found by, or its group in the agreement view
 */
export function makeCard(clip, { tag = "li", href = null, by = null } = {}) {
  const pictures = make("span", { className: "pictures" }, makeStage(clip), makeSpectrogram(clip));
  const picked = [pictures, makeName(clip.path)];
  const label = clip.label === null ? "" : `, label ${clip.label}`;
  const card = make(
    tag,
    { className: "card" },
    href === null
      ? make("div", { className: "pick-not" }, ...picked)
      : make("a", { className: "pick", href, ariaLabel: `Neighbors of ${clip.path}${label}` }, ...picked),
    canPlay(clip) ? makePlayButton(clip) : null,
    typeof clip.id === "number" ? makeBox(clip) : null, // not a file of the user's own
    makeDetails(clip),
    by === null ? null : makeScores(clip, by),
  );
  card.dataset.id = clip.id;
  showTags(card);
  if (canPlay(clip)) makePlayable(card, clip);
  return card;
}

function makeStage(clip) {
  const stage = make("span", { className: "stage" });
  if (clip.has_video) stage.append(makeImage(`/poster/${clip.id}`, `Middle frame of ${clip.path}`, 160, 120));
  else stage.classList.add("no-picture");
  return stage;
}

function makeSpectrogram(clip) {
  if (!clip.has_audio) return make("span", { className: "spectrogram silent", textContent: "no audio" });
  const image = makeImage(`/spectrogram/${clip.id}`, `Spectrogram of ${clip.path}`, 256, 64);
  return make("span", { className: "spectrogram" }, image, make("span", { className: "position" }));
}

function makeImage(src, alt, width, height) {
  const image = make("img", { loading: "lazy", decoding: "async", width, height, alt, src });
  image.addEventListener("error", () => {
    image.hidden = true; // the alternative text would not fit
    image.parentElement.dataset.problem = "no preview";
  });
  return image;
}

/** The path in one line: its beginning is shortened when there is no room, the file's name is kept. */
export function makeName(path) {
  const cut = Math.max(path.lastIndexOf("/"), path.length - 16, 0);
  return make(
    "span",
    { className: "name", title: path },
    make("span", { className: "name-start", textContent: path.slice(0, cut) }),
    make("span", { className: "name-end", textContent: path.slice(cut) }),
  );
}

function makePlayButton(clip) {
  const button = make("button", { type: "button", className: "play", ariaLabel: `Play ${clip.path}` });
  button.setAttribute("aria-pressed", "false");
  return button;
}

function makeDetails(clip) {
  const details = make("p", { className: "details" });
  if (clip.label !== null) details.append(make("span", { className: "label", textContent: clip.label, title: clip.label }));
  if (clip.start !== null || clip.end !== null) {
    details.append(make("span", { className: "part", textContent: partInWords(clip) }));
  }
  if (!clip.has_video) details.append(make("span", { className: "part", textContent: "no video" }));
  return details;
}

function partInWords(clip) {
  if (clip.end === null) return `from ${clip.start.toFixed(1)} s`;
  return `${(clip.start ?? 0).toFixed(1)}–${clip.end.toFixed(1)} s`;
}

/** Cosines to the query: the one that was asked for stands out. */
function makeScores(neighbor, by) {
  const scores = make("dl", { className: "scores" });
  const asked = askedScore(neighbor, by);
  if (by === "v2a" || by === "a2v") scores.append(makeScore(by === "v2a" ? "v→a" : "a→v", neighbor.score, true));
  scores.append(makeScore("video", neighbor.video, asked === "video"), makeScore("audio", neighbor.audio, asked === "audio"));
  return scores;
}

function askedScore(neighbor, by) {
  if (by === "positives") return neighbor.video <= neighbor.audio ? "video" : "audio"; // the smaller one decides
  return { v2v: "video", looks_alike: "video", a2a: "audio", sounds_alike: "audio" }[by];
}

function makeScore(name, value, asked) {
  const text = value === null ? "–" : value.toFixed(2).replace("-", "−");
  return make(
    "div",
    { className: asked ? "asked" : "" },
    make("dt", { textContent: name }),
    make("dd", { textContent: text, title: value === null ? "one of the two lacks this side" : `cosine ${value.toFixed(4)}` }),
  );
}

/** Arrow keys go from card to card in a grid: sideways to the next one, up and down to the one in the same column. */
export function walkGrid(grid) {
  grid.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow") || event.ctrlKey || event.altKey || event.metaKey) return;
    const links = [...grid.querySelectorAll(".pick")];
    const place = links.indexOf(event.target);
    if (place < 0) return;
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = links[place + step];
    if (!next) return;
    event.preventDefault();
    next.focus({ focusVisible: true });
    next.scrollIntoView({ block: "nearest" });
  });
}

/**
 * A button that loads the next page; it presses itself when it comes near the window. LOADNEXT tells whether that went
 * well: after a failure the button waits for a click, or for coming near again.
 */
export function makeEndless(button, loadNext) {
  let busy = false;
  const press = async () => {
    if (busy || button.hidden) return;
    busy = true;
    const went = await loadNext();
    busy = false;
    if (!went) return;
    near.unobserve(button); // observing anew tells whether it is still near
    near.observe(button);
  };
  const near = new IntersectionObserver(([entry]) => entry.isIntersecting && press(), { rootMargin: "400px" });
  near.observe(button);
  button.addEventListener("click", press);
}
