// Calls to the server. Every one throws an Error whose message is a sentence for the user.

const SIDE_OF = { v: "has_video", a: "has_audio" };
const LACK = { v: "this clip has no video", a: "this clip has no audio" };

/** GET /api/PATH as JSON; parameters that are "", false or null are left out. */
export async function ask(path, parameters = {}, signal = undefined) {
  const wanted = Object.entries(parameters).filter(([, value]) => value !== "" && value !== false && value !== null);
  const text = new URLSearchParams(wanted).toString();
  return answerOf(await reach(`/api/${path}${text ? `?${text}` : ""}`, { signal }));
}

/** POST a value as JSON to /api/PATH. */
export async function send(path, value) {
  const headers = { "content-type": "application/json" };
  return answerOf(await reach(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(value) }));
}

/** Send a file, as it is, and return the clip that the server made of it. */
export async function upload(file) {
  const url = `/api/uploads?${new URLSearchParams({ name: file.name })}`;
  return asClip(await answerOf(await reach(url, { method: "POST", body: file })));
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is avssl browse still running?");
  }
}

async function answerOf(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const detail = typeof body?.detail === "string" ? body.detail : `The server answered ${response.status}.`;
  throw Object.assign(new Error(detail), { status: response.status });
}

/** An uploaded file in the shape of a clip. */
export function asClip(query) {
  return "path" in query ? query : { ...query, path: query.name, label: null, start: null, end: null };
}

/** Why a query cannot be asked this way, or "" when it can. */
export function obstacle(by, query, store) {
  if (!store.ways.includes(by)) return "these embeddings cannot answer it";
  const sides = by === "agreement" ? ["v", "a"] : [by[0]];
  const lacking = sides.find((side) => !query[SIDE_OF[side]]);
  return lacking ? LACK[lacking] : "";
}
