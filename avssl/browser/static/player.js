// One clip plays at a time. Its <video> or <audio> is made when it starts and thrown away when it stops, so that a
// grid of hundreds holds no media and no connections (a browser opens only six to a server).

const localFiles = new Map(); // id of an uploaded clip -> object URL of the file, for as long as the page is open
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const HOVER_MILLISECONDS = 120; // a pointer on its way across the grid starts nothing
const CLICK_MILLISECONDS = 500; // a click so soon after that wants what the hover has started, not its end

let playing = null; // {card, clip, media, hovered: when the pointer started it, or null}
let waiting = 0;

export function keepFile(id, file) {
  localFiles.set(id, URL.createObjectURL(file));
}

/** Whether this page can play the clip: an uploaded file is only here, and gone after a reload. */
export function canPlay(clip) {
  return localFiles.has(clip.id) || !String(clip.id).startsWith("u-");
}

/** Play the card's clip on hover and on keyboard focus (not with reduced motion) and by its button. */
export function makePlayable(card, clip) {
  const button = card.querySelector(".play");
  const target = card.querySelector(".pick");
  button.addEventListener("click", () => toggle(card, clip));
  card.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") soon(() => play(card, clip, performance.now()));
  });
  card.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") stopCard(card);
  });
  target?.addEventListener("focus", () => {
    if (target.matches(":focus-visible") && !reducedMotion.matches) play(card, clip);
  });
  card.addEventListener("focusout", (event) => {
    if (!card.contains(event.relatedTarget)) stopCard(card);
  });
}

function toggle(card, clip) {
  if (playing?.card !== card) play(card, clip);
  else if (playing.hovered === null || performance.now() - playing.hovered > CLICK_MILLISECONDS) stop();
}

function soon(start) {
  clearTimeout(waiting);
  if (!reducedMotion.matches) waiting = setTimeout(start, HOVER_MILLISECONDS);
}

function stopCard(card) {
  clearTimeout(waiting);
  if (playing?.card === card) stop();
}

function play(card, clip, hovered = null) {
  if (playing?.card === card) return;
  stop();
  const media = document.createElement(clip.has_video ? "video" : "audio");
  const source = localFiles.get(clip.id) ?? `/media/${clip.id}`; // of a part of a file, that part alone
  Object.assign(media, { src: source, playsInline: true, muted: !clip.has_audio, loop: true });
  media.setAttribute("aria-hidden", "true"); // the card's button says what plays
  card.querySelector(".stage").append(media);
  playing = { card, clip, media, hovered };
  showPlaying(card, true);
  start(media);
  requestAnimationFrame(follow);
}

export function stop() {
  clearTimeout(waiting);
  if (!playing) return;
  const { card, media } = playing;
  playing = null;
  showPlaying(card, false);
  media.pause();
  media.removeAttribute("src");
  media.load(); // lets go of the connection
  media.remove();
}

async function start(media) {
  try {
    await media.play();
  } catch (error) {
    if (playing?.media !== media) return; // stopped before it had begun
    if (error.name === "NotAllowedError" && !media.muted) {
      media.muted = true; // a browser gives no audio before the first click or key
      showHint(true);
      await start(media);
    } else {
      const { card } = playing;
      stop();
      card.querySelector(".stage").dataset.problem = "cannot be played here";
    }
  }
}

/** Moves the line over the spectrogram, frame by frame. */
function follow() {
  if (!playing) return;
  const { card, media } = playing;
  const share = media.currentTime / media.duration;
  const line = card.querySelector(".position");
  if (line && Number.isFinite(share)) line.style.left = `${100 * share}%`;
  requestAnimationFrame(follow);
}

function showPlaying(card, on) {
  card.classList.toggle("playing", on);
  card.querySelector(".play").setAttribute("aria-pressed", String(on));
}

function showHint(on) {
  document.getElementById("sound-hint").hidden = !on;
}

function allowSound() {
  if (!navigator.userActivation.hasBeenActive) return;
  showHint(false);
  if (playing) playing.media.muted = !playing.clip.has_audio;
}

document.addEventListener("pointerup", allowSound);
document.addEventListener("keydown", allowSound);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) stop();
});
