// The live picture: the newest that came, its age, and the camera's state.

import { age, byId, veil } from "./words.js";

const [TALLEST, WIDEST] = [1, 2]; // width by height
const canvas = byId("live");
let newest = null; // { head, at } of the picture that is shown

export async function showLive(head, jpeg, isCurrent) {
  const picture = await createImageBitmap(jpeg);
  if (isCurrent()) {
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
      const ratio = Math.min(WIDEST, Math.max(TALLEST, picture.width / picture.height));
      byId("panel").style.setProperty("--ratio", ratio.toFixed(4)); // of both panes
    }
    canvas.getContext("2d").drawImage(picture, 0, 0);
    canvas.dataset.number = head.number;
    newest = { head, at: performance.now() };
  }
  picture.close();
  if (document.hidden) await shownAgain(); // a page that nobody sees asks for no more
}

function shownAgain() {
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", () => resolve(), { once: true });
  });
}

export function clearLive() {
  newest = null;
  canvas.width = canvas.width; // empties it
  delete canvas.dataset.number;
}

export function showCamera(camera) {
  const state = byId("state");
  if (state.dataset.state !== camera.state) {
    state.dataset.state = camera.state;
    state.textContent = camera.state;
  }
  byId("live-size").textContent = camera.size ? `${camera.size[0]} × ${camera.size[1]}` : "";
  const parts = [camera.shown];
  if (camera.fps) parts.push(`${camera.fps.toFixed(camera.fps < 10 ? 1 : 0)} fps`);
  if (camera.reconnects) parts.push(`${camera.reconnects} × reconnected`);
  if (camera.skipped) parts.push(`${camera.skipped} damaged`);
  byId("live-about").textContent = parts.join(" · ");
  const text = veil(camera);
  byId("veil").hidden = !text;
  byId("veil").textContent = text;
  canvas.parentElement.classList.toggle("off", Boolean(text));
}

export function tickLive() {
  const shown = newest ? newest.head.age_s + (performance.now() - newest.at) / 1000 : NaN;
  byId("live-age").textContent = age(shown);
}
