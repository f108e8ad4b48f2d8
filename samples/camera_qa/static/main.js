// Puts the page together: what the server says goes to the pane that shows it.

import * as answerPane from "./answer.js";
import { Controls } from "./controls.js";
import { addEntry, showHistory } from "./history.js";
import { listenToKeys } from "./keys.js";
import { Link } from "./link.js";
import { clearLive, showCamera, showLive, tickLive } from "./live.js";
import { listenToTabs, showTabs } from "./tabs.js";
import { Webcam } from "./webcam.js";
import { byId, element, veil } from "./words.js";

const ENTRIES = 40; // answers of each camera that can be looked at again
const SLOW_MS = 400; // after so long the picture that is being read is shown without its answer
const CAMERA_CODES = new Set(["camera_lost", "camera_frozen", "frame_too_old"]);
const sources = new Map();
let current = null;
let wanted = null; // the tab that this page's own camera is to get

const link = new Link({ onMessage, onPicture, onState });
const controls = new Controls(link, () => current);
const webcam = new Webcam(link, (error) => answerPane.showError(error));

const handlers = {
  hello(message) {
    const names = new Set([message.bundle, message.family]);
    byId("model").textContent = [...names, message.backend.toUpperCase()].join(" · ");
    byId("logging").textContent = message.logging;
    controls.offer(message);
    wanted ??= current; // all is told anew, to a page that was there before too
    current = null;
    sources.clear();
    webcam.begin();
  },
  sources({ sources: listed }) {
    const ids = new Set(listed.map((source) => source.id));
    for (const id of sources.keys()) if (!ids.has(id)) sources.delete(id);
    for (const source of listed) {
      const known = sources.get(source.id);
      if (known) Object.assign(known, source);
      else sources.set(source.id, { ...source, entries: [], pictures: new Map(), run: null });
    }
    const next = ids.has(wanted) ? wanted : ids.has(current) ? current : listed[0]?.id;
    if (next === wanted) wanted = null;
    choose(next, true);
  },
  settings(message, source) {
    source.settings = message;
    if (source.id === current) controls.apply(message);
  },
  camera(message, source) {
    const changed = source.camera?.state !== message.state;
    source.camera = message;
    if (source.id === current) {
      showCamera(message);
      if (changed) showCameraError(message);
    }
    if (changed) showTabs(sources, current, choose);
  },
  asked(message, source) {
    source.run = { ...message, at: performance.now(), text: "" };
    if (source.id !== current) return;
    controls.busy(true);
    source.slow = setTimeout(() => showRun(source), SLOW_MS);
  },
  writing(message, source) {
    if (source.run?.id !== message.id) source.run = { ...message, at: performance.now() };
    source.run.text = message.text;
    if (source.id === current && !source.viewed) {
      answerPane.showQuestion(message.question);
      answerPane.showText(message.text, { writing: true });
    }
  },
  answered(message, source) {
    ended(source, message);
    source.answer = message;
    source.error = null;
    if (source.id !== current || source.viewed) return;
    answerPane.showError(null);
    showEntry(source, message);
    answerPane.speak(message.text);
  },
  failed(message, source) {
    ended(source, message);
    source.error = message;
    if (source.id === current) showFailure(message);
  },
  calibrating({ running }) {
    if (running) {
      answerPane.showError({ code: "measuring", message: "This device is being measured.",
        hint: "Questions wait until that is done." });
    } else answerPane.showError(null);
  },
  machine(message) {
    const parts = Object.entries(message.figures).map(([name, text]) =>
      element("li", {}, `${name} `, element("b", { text })));
    byId("machine").replaceChildren(...parts);
  },
  refused(message) {
    answerPane.showError(message);
    const source = sources.get(current);
    if (source?.settings) controls.apply(source.settings, message.about === "set");
  },
  webcam(message) {
    wanted = message.source;
    webcam.accepted();
    if (sources.has(wanted)) choose(wanted);
  },
  taken() {
    webcam.taken();
  },
};

function onMessage(message) {
  const source = sources.get(message.source);
  if (message.source !== undefined && !source && message.type !== "webcam") return;
  handlers[message.type]?.({ ...message, at: performance.now() }, source);
}

async function onPicture(head, jpeg) {
  try {
    if (head.kind === "live") {
      await showLive(head, jpeg, () => head.source === current);
    } else {
      keepPicture(sources.get(head.source), head, jpeg);
    }
  } finally {
    link.send("seen"); // the next may come
  }
}

function keepPicture(source, head, jpeg) {
  if (!source) return;
  const isNew = !source.pictures.has(head.id);
  source.pictures.set(head.id, { head, jpeg });
  while (source.pictures.size > ENTRIES) source.pictures.delete(source.pictures.keys().next().value);
  if (source.id !== current || source.viewed) return;
  if (source.answer?.id === head.id) showEntry(source, source.answer);
  else if (isNew && source.run && performance.now() - source.run.at > SLOW_MS) showRun(source);
}

// A run that takes long: show what it reads before its answer is there.
function showRun(source) {
  if (source.id !== current || source.viewed || !source.run) return;
  const kept = source.pictures.get(source.run.id);
  answerPane.showQuestion(source.run.question);
  if (!source.run.text) answerPane.showText("", { writing: true });
  if (kept) answerPane.showPicture(kept.jpeg, kept.head.sheet, null, source.run);
}

function ended(source, message) {
  clearTimeout(source.slow);
  source.run = null;
  const last = source.entries.at(-1);
  if (source.id === current) controls.busy(false);
  if (last?.type === "failed" && last.code === message.code) return; // it goes on
  source.entries.push({ ...message });
  if (source.entries.length > ENTRIES) source.entries.shift();
  if (source.id === current) addEntry(message, ENTRIES, openEntry);
}

function showEntry(source, answer) {
  const kept = source.pictures.get(answer.id);
  if (kept) answerPane.showPicture(kept.jpeg, kept.head.sheet, answer.layers, answer);
  answerPane.showAnswer(answer, answer.at);
}

function showFailure(error) {
  const measure = { label: "Measure this device now", run: () => link.send("calibrate") };
  answerPane.showError(error, error.code === "not_calibrated" ? measure : null);
  answerPane.showText(byId("answer").textContent); // whatever was being written has ended
}

// As long as a camera is not to be asked about, the reason stands there; then it goes.
function showCameraError(camera) {
  if (camera.code) {
    answerPane.showError({ code: camera.code, message: veil(camera).split("\n")[0], hint: camera.hint });
  } else if (CAMERA_CODES.has(byId("error-code").textContent)) {
    answerPane.showError(null);
  }
}

function openEntry(entry) {
  const source = sources.get(current);
  if (entry.type === "failed") {
    showFailure(entry);
    return;
  }
  source.viewed = entry.id;
  byId("back").hidden = false;
  showEntry(source, entry);
  showHistory(source.entries, source.viewed, openEntry);
  byId("asked").scrollIntoView({ block: "nearest" });
}

function backToNewest() {
  const source = sources.get(current);
  source.viewed = null;
  byId("back").hidden = true;
  showHistory(source.entries, null, openEntry);
  if (source.answer) showEntry(source, source.answer);
}

function choose(id, listed = false) {
  const source = sources.get(id);
  if (!source) {
    showTabs(sources, current, choose);
    return;
  }
  const same = id === current && listed && byId("tabs").children.length;
  current = id;
  showTabs(sources, current, choose);
  link.send("watch", { source: id });
  if (same) return;
  source.viewed = null;
  byId("back").hidden = true;
  clearLive();
  answerPane.clearAnswer();
  answerPane.showError(source.error);
  if (source.camera) {
    showCamera(source.camera);
    if (source.camera.code) showCameraError(source.camera);
  }
  if (source.settings) controls.apply(source.settings, true);
  controls.busy(Boolean(source.run));
  if (source.answer) showEntry(source, source.answer);
  showHistory(source.entries, null, openEntry);
}

function onState(state, reason) {
  const place = byId("link");
  place.hidden = state === "open";
  if (state !== "open") {
    place.textContent = reason || "The connection to the server is lost; it is tried again.";
    clearLive();
  }
}

function nextOverlay() {
  const radios = [...byId("overlay").querySelectorAll("input")];
  const next = radios[(radios.findIndex((radio) => radio.checked) + 1) % radios.length];
  next.checked = true;
  answerPane.setOverlay(next.value);
}

byId("overlay").addEventListener("change", (event) => answerPane.setOverlay(event.target.value));
byId("back").addEventListener("click", backToNewest);
byId("error-close").addEventListener("click", () => answerPane.showError(null));
listenToTabs(sources, () => current, choose);
listenToKeys({ controls, nextOverlay, chooseTab: (place) => choose([...sources.keys()][place]) });
setInterval(() => {
  tickLive();
  answerPane.tickAnswer();
}, 100);
if (location.search) history.replaceState(null, "", location.pathname); // a token is no bookmark
addEventListener("pagehide", () => link.close());
link.open();
