// Clips that were selected: their tags, which the server keeps in a file, and a list of them as CSV.

import { ask, send } from "/static/api.js";

const bar = document.getElementById("selection");
const input = document.getElementById("tag");
const selected = new Map(); // id -> clip
let tags = {}; // id -> its tags
let context = null; // {attempt, onTags}

/** Ask for the tags; ONTAGS({tag: clips}) is called with them and after every change. */
export async function beginSelecting({ attempt, onTags }) {
  context = { attempt, onTags };
  await attempt(async () => take(await ask("tags")));
}

function take(answer) {
  tags = answer.tags;
  context.onTags(answer.counts);
  const names = Object.keys(answer.counts);
  document.getElementById("known-tags").replaceChildren(...names.map((value) => Object.assign(document.createElement("option"), { value })));
  for (const card of document.querySelectorAll(".card[data-id]")) showTags(card);
}

/** A box in the corner of a card that selects its clip. */
export function makeBox(clip) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", className: "select", ariaLabel: `Select ${clip.path}` });
  box.checked = selected.has(clip.id);
  box.addEventListener("change", () => {
    if (box.checked) selected.set(clip.id, clip);
    else selected.delete(clip.id);
    for (const card of document.querySelectorAll(`.card[data-id="${clip.id}"] .select`)) card.checked = box.checked;
    showBar();
  });
  return box;
}

/** The tags of a card's clip, behind its label. */
export function showTags(card) {
  const details = card.querySelector(".details");
  for (const old of details.querySelectorAll(".tag")) old.remove();
  for (const textContent of tags[card.dataset.id] ?? []) {
    details.append(Object.assign(document.createElement("span"), { className: "tag", textContent, title: textContent }));
  }
}

function showBar() {
  bar.hidden = selected.size === 0;
  document.getElementById("selected-count").textContent = `${selected.size.toLocaleString("en")} selected`;
}

async function change(on) {
  const tag = input.value.trim();
  if (!tag) return input.focus();
  await context.attempt(async () => {
    take(await send("tags", { ids: [...selected.keys()], tag, on }));
    input.value = "";
  });
}

function clear() {
  selected.clear();
  for (const box of document.querySelectorAll(".card .select")) box.checked = false;
  showBar();
}

/** id, path, label and tags of the selected clips, as a file to keep. */
function save() {
  const rows = [...selected.values()].map((clip) => [clip.id, clip.path, clip.label ?? "", (tags[clip.id] ?? []).join(";")]);
  const lines = [["id", "path", "label", "tags"], ...rows].map((row) => row.map(quoted).join(","));
  const href = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  Object.assign(document.createElement("a"), { href, download: "clips.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

function quoted(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

bar.addEventListener("submit", (event) => {
  event.preventDefault();
  change(true);
});
document.getElementById("untag").addEventListener("click", () => change(false));
document.getElementById("save-selected").addEventListener("click", save);
document.getElementById("clear-selected").addEventListener("click", clear);
