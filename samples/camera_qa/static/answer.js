// One answer: its text, the picture it was read from, its numbers, or why there is none.
//
// What a model says is text and nothing else: it is only ever set as textContent.

import { drawAsked } from "./overlay.js";
import { FINISHED, STAGES, age, byId, element, encoded, ms } from "./words.js";

const canvas = byId("asked");
let drawn = null; // what is on the canvas: { picture, sheet, layers }
let shown = null; // the answer whose age runs: { answer, at }
let mode = "kept";

export const overlayMode = () => mode;

export function setOverlay(chosen) {
  mode = chosen;
  redraw();
}

export function showText(text, { writing = false, note = "" } = {}) {
  const place = byId("answer");
  place.textContent = text;
  if (note) place.append(element("span", { className: "note", text: `${text ? "  " : ""}${note}` }));
  place.classList.toggle("writing", writing);
}

export function showQuestion(text) {
  byId("answer-question").textContent = text || "–";
}

export function speak(text) {
  const place = byId("spoken");
  if (place.textContent !== text) place.textContent = text; // said once, not at every frame
}

export async function showPicture(jpeg, sheet, layers, about) {
  if (!jpeg) return;
  const picture = await createImageBitmap(jpeg);
  drawn?.picture.close();
  drawn = { picture, sheet, layers };
  canvas.dataset.number = about.number;
  canvas.dataset.layers = layers ? layers.length : 0;
  byId("asked-veil").hidden = true;
  redraw();
}

function redraw() {
  if (!drawn) return;
  const layers = drawn.layers ?? [];
  drawAsked(canvas, drawn.picture, { layers, sheet: drawn.sheet, mode: layers.length ? mode : "off" });
  canvas.dataset.mode = layers.length ? mode : "off";
  showLegend(layers);
}

function showLegend(layers) {
  const scored = layers.some((layer) => layer.scores);
  const key = (kind, text) =>
    element("span", {}, element("i", { className: `swatch ${kind}` }), text);
  const parts = [];
  if (!layers.length) parts.push(element("span", { text: "The overlay comes with the answer." }));
  else if (mode === "kept") {
    parts.push(key("kept", "kept"), key("dimmed", "never entered the LLM"));
    if (scored) parts.push(key("ramp", "more relevant"));
  } else if (mode === "heat") {
    parts.push(scored ? key("heat", "relevance, low to high")
      : element("span", { text: "This answer has no relevance: its selector gives none, or all was kept." }));
  }
  byId("legend").replaceChildren(...parts);
}

export function clearAnswer() {
  drawn?.picture.close();
  drawn = shown = null;
  canvas.width = canvas.width;
  delete canvas.dataset.number;
  byId("asked-veil").hidden = false;
  byId("asked-corner").hidden = true;
  byId("legend").replaceChildren();
  showText("");
  showQuestion("");
  showProbabilities(null);
  for (const id of ["kept", "ttft", "rate", "drops", "reuse"]) byId(id).textContent = "–";
  for (const id of ["kept-total", "encoded", "ttft-below", "rate-below", "reuse-total", "split-total"]) {
    byId(id).textContent = "";
  }
  byId("kept-bar").style.width = "0";
  byId("bar").replaceChildren();
  byId("bar-legend").replaceChildren();
}

export function showAnswer(answer, at) {
  shown = { answer, at };
  showQuestion(answer.question);
  showText(answer.text, { note: FINISHED[answer.finish_reason] ?? (answer.text ? "" : "(no words)") });
  showProbabilities(answer.probabilities, answer.choice);
  byId("kept").textContent = answer.kept;
  byId("kept-total").textContent = `of ${answer.total}`;
  byId("kept-bar").style.width = `${(100 * answer.kept) / Math.max(1, answer.total)}%`;
  const looked = encoded(answer);
  byId("encoded").textContent = looked && `${looked} (${answer.encode})`;
  byId("encoded").title = answer.encode_reason;
  byId("ttft").textContent = ms(answer.ttft_ms);
  byId("ttft-below").textContent = `${answer.prompt_tokens} rows, ${answer.reused_rows} reused`;
  byId("rate").textContent = answer.tokens_per_s ? Math.round(answer.tokens_per_s) : "–";
  byId("rate-below").textContent = answer.tokens === 1 ? "one token"
    : `${answer.tokens} tokens in ${ms(answer.decode_ms)} ms`;
  byId("drops").textContent = answer.drops;
  byId("reuse").textContent = answer.encoder_hits_total;
  byId("reuse-total").textContent = `of ${answer.encoder_hits_total + answer.encoder_runs_total}`;
  showBar(answer.stages, answer.ttft_ms);
  tickAnswer();
}

function showProbabilities(probabilities, choice) {
  const list = byId("probabilities");
  list.hidden = !probabilities;
  const rows = Object.entries(probabilities ?? {}).sort((one, other) => other[1] - one[1]);
  list.replaceChildren(...rows.map(([name, p]) => {
    const bar = element("i");
    bar.style.setProperty("--p", p);
    const className = name === choice ? "best" : "";
    return element("li", { className }, element("span", { text: name }), bar,
      element("b", { text: p.toFixed(2) }));
  }));
}

function showBar(stages, total) {
  const known = stages.map(([name, value]) => {
    const [label, color] = STAGES[name] ?? [name, STAGES.other[1]];
    return { label, color, value };
  });
  byId("split-total").textContent = `${ms(total)} ms`;
  byId("bar").replaceChildren(...known.map(({ label, color, value }) => {
    const part = element("i", { title: `${label}: ${ms(value)} ms` });
    part.style.setProperty("--s", `var(${color})`);
    part.style.flex = `${value} 0 0`;
    return part;
  }));
  const words = known.map(({ label, value }) => `${label} ${ms(value)} ms`);
  byId("bar").setAttribute("aria-label", `Time to the first token: ${words.join(", ")}`);
  byId("bar-legend").replaceChildren(...known.map(({ label, color, value }) => {
    const swatch = element("i");
    swatch.style.setProperty("--s", `var(${color})`);
    return element("li", {}, swatch, `${label} `, element("b", { text: `${ms(value)} ms` }));
  }));
}

export function tickAnswer() {
  if (!shown) {
    byId("age").textContent = "–";
    return;
  }
  const { answer, at } = shown;
  const now = answer.age_now_s + (performance.now() - at) / 1000;
  byId("age").textContent = age(now);
  byId("age-below").textContent = `${age(answer.age_s)} when answered`;
  byId("age").closest(".tile").classList.toggle("old", now > 5);
  const video = answer.frames > 1 ? ` · ${answer.frames} frames` : "";
  const same = answer.unchanged ? " · unchanged" : "";
  byId("asked-corner").hidden = false;
  byId("asked-age").textContent = age(answer.age_s);
  byId("asked-about").textContent = `old · frame ${answer.number}${video}${same}`;
}

export function showError(error, action = null) {
  byId("error").hidden = !error;
  if (!error) return;
  byId("error-code").textContent = error.code;
  byId("error-message").textContent = error.message;
  byId("error-hint").textContent = error.hint ?? "";
  const button = byId("error-action");
  button.hidden = !action;
  if (action) {
    button.textContent = action.label;
    button.onclick = action.run;
  }
}
