// The form: what is asked, how often, and from how many vision tokens.

import { byId, element } from "./words.js";

const KEPT_QUESTIONS = 30;
const KINDS = {
  share: {
    range: [0.05, 1, 0.01],
    read: (text) => (/^\d*\.\d*$/.test(text) ? Number(text) : null),
    write: (value) => value.toFixed(2),
    help: "This share of the vision tokens enters the LLM.",
  },
  mass: {
    range: [0.5, 1, 0.01],
    read: (text) => (text.startsWith("mass:") ? Number(text.slice(5)) : null),
    write: (value) => `mass:${value.toFixed(2)}`,
    help: "The fewest tokens that hold this share of the relevance.",
  },
  auto: {
    range: [1.3, 3.7, 0.01], // powers of ten, in ms
    read: (text) => timeOf("auto", text),
    write: (value) => `auto:${rounded(10 ** value)}ms`,
    help: "What the question needs, with the first token in time.",
  },
  ttft: {
    range: [1.3, 3.7, 0.01],
    read: (text) => timeOf("ttft", text),
    write: (value) => `ttft:${rounded(10 ** value)}ms`,
    help: "The most tokens with which the first token is in time.",
  },
};
const ENCODES = {
  full: "The vision encoder is shown everything.",
  lazy: "Whole pictures and some frames, then crops and frames that the question points to.",
  coarse: "Half the size, then in full what the question points to.",
  repeats: "Nothing twice.",
  auto: "The cheapest of these that fits.",
  follow: "What has moved, and every part of the picture once in eight answers.",
};
const START = { share: 0.5, mass: 0.9, auto: Math.log10(300), ttft: Math.log10(300) };

function timeOf(kind, text) {
  const found = text.match(/^(auto|ttft):([\d.]+)(ms|s)$/);
  if (!found || found[1] !== kind) return null;
  return Math.log10(Number(found[2]) * (found[3] === "s" ? 1000 : 1));
}

function rounded(value) {
  const step = value < 100 ? 1 : value < 1000 ? 10 : 50;
  return Math.round(value / step) * step;
}

export class Controls {
  #link;
  #source = () => null;
  #settings = {};
  #dirty = new Set(); // fields that hold what the server has not heard
  #values = { ...START };
  #kind = "share";
  #timer = null;
  #asked = JSON.parse(localStorage.getItem("questions") ?? "[]");
  #place = -1; // in the earlier questions

  constructor(link, source) {
    this.#link = link;
    this.#source = source;
    byId("controls").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("question").addEventListener("input", () => this.#dirty.add("question"));
    byId("question").addEventListener("keydown", (event) => this.#questionKey(event));
    byId("pause").addEventListener("click", () => this.pause());
    byId("cancel").addEventListener("click", () => this.cancel());
    byId("mode").addEventListener("change", (event) => this.#set({ mode: event.target.value }));
    byId("selector").addEventListener("change", (event) =>
      this.#set({ selector: event.target.value || null }));
    byId("encode").addEventListener("change", (event) => this.#set({ encode: event.target.value }));
    byId("length").addEventListener("change", (event) => {
      if (event.target.reportValidity() && event.target.value) {
        this.#set({ max_new_tokens: Number(event.target.value) });
      }
    });
    byId("choices").addEventListener("input", () => this.#dirty.add("choices"));
    byId("choices").addEventListener("change", () => this.#setChoices());
    byId("choices").addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        this.#setChoices();
      }
    });
    byId("budget-kind").addEventListener("change", (event) => {
      this.#kind = event.target.value;
      this.#slide(this.#values[this.#kind]);
      this.#sendBudget();
    });
    byId("budget").addEventListener("input", (event) => this.#moved(Number(event.target.value)));
    byId("budget").addEventListener("change", () => this.#dirty.delete("budget"));
  }

  offer({ selectors, default_selector: usual, encodes, presets, longest }) {
    byId("length").max = longest;
    byId("selector").replaceChildren(
      element("option", { value: "", text: `${usual} (default)` }),
      ...selectors.filter((name) => name !== usual)
        .map((name) => element("option", { value: name, text: name })));
    byId("encode").replaceChildren(
      ...encodes.map((name) => element("option", { value: name, text: name })));
    byId("presets").replaceChildren(...presets.map(({ group, items }, place) => {
      const chips = element("div", {}, ...items.map((item) => this.#preset(item)));
      const folded = element("details", { className: "group" }, element("summary", { text: group }), chips);
      folded.open = place === 0;
      return folded;
    }));
  }

  // What the server says holds for everybody, but for what is being typed here.
  apply(settings, fresh = false) {
    if (fresh) this.#dirty.clear();
    this.#settings = settings;
    if (!this.#dirty.has("question")) byId("question").value = settings.question;
    if (!this.#dirty.has("choices")) byId("choices").value = (settings.choices ?? []).join(", ");
    for (const radio of byId("mode").querySelectorAll("input")) {
      radio.checked = radio.value === settings.mode;
    }
    byId("selector").value = settings.selector ?? "";
    if (byId("selector").selectedIndex < 0) byId("selector").value = "";
    this.#showEncode(settings.encode);
    if (document.activeElement !== byId("length")) byId("length").value = settings.max_new_tokens;
    byId("pause").textContent = settings.paused ? "Go on" : "Pause";
    byId("pause").setAttribute("aria-pressed", String(settings.paused));
    if (!this.#dirty.has("budget")) this.#readBudget(settings.budget);
  }

  ask() {
    const question = byId("question").value.trim();
    if (!question) return;
    this.#asked = [question, ...this.#asked.filter((text) => text !== question)];
    this.#asked.length = Math.min(this.#asked.length, KEPT_QUESTIONS);
    localStorage.setItem("questions", JSON.stringify(this.#asked));
    this.#place = -1;
    this.#dirty.delete("question");
    if (this.#timer) this.#sendBudget(); // what was set before holds for this question
    if (this.#dirty.has("choices")) this.#setChoices();
    this.#link.send("ask", { source: this.#source(), question });
  }

  pause() {
    this.#link.send(this.#settings.paused ? "resume" : "pause", { source: this.#source() });
  }

  cancel() {
    this.#link.send("cancel", { source: this.#source() });
  }

  busy(running) {
    byId("cancel").disabled = !running;
  }

  nudge(steps) {
    const [low, high] = KINDS[this.#kind].range;
    this.#moved(Math.min(high, Math.max(low, this.#values[this.#kind] + steps * (high - low) * 0.05)));
    byId("budget").value = this.#values[this.#kind];
    this.#dirty.delete("budget");
  }

  #set(fields) {
    this.#link.send("set", { source: this.#source(), ...fields });
  }

  #showEncode(text) {
    const list = byId("encode");
    if (![...list.options].some((option) => option.value === text)) { // lazy:2, of the command line
      list.append(element("option", { value: text, text }));
    }
    list.value = text;
    list.title = ENCODES[text.split(":")[0]] ?? "";
  }

  #setChoices() {
    const choices = byId("choices").value.split(",").map((text) => text.trim()).filter(Boolean);
    this.#dirty.delete("choices");
    this.#set({ choices: [...new Set(choices)] });
  }

  #preset({ question, choices }) {
    const button = element("button", { type: "button", text: question });
    button.addEventListener("click", () => {
      byId("question").value = question;
      byId("choices").value = choices.join(", ");
      this.#setChoices();
      this.ask();
    });
    return button;
  }

  #questionKey(event) {
    const field = event.target;
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.ask();
    } else if (event.key === "ArrowUp" && field.selectionStart === 0) {
      this.#recall(event, this.#place + 1);
    } else if (event.key === "ArrowDown" && field.selectionStart === field.value.length) {
      this.#recall(event, this.#place - 1);
    }
  }

  #recall(event, place) {
    if (place < 0 || place >= this.#asked.length) return;
    event.preventDefault();
    this.#place = place;
    byId("question").value = this.#asked[place];
    byId("question").setSelectionRange(0, 0);
    this.#dirty.add("question");
  }

  #readBudget(text) {
    const found = Object.entries(KINDS).find(([, kind]) => kind.read(text) !== null);
    for (const radio of byId("budget-kind").querySelectorAll("input")) {
      radio.checked = radio.value === found?.[0];
    }
    if (found) {
      this.#kind = found[0];
      this.#slide(found[1].read(text));
    }
    else byId("budget-text").textContent = /^\d+$/.test(text) ? `${text} tokens` : text;
  }

  #slide(value) {
    const { range: [low, high, step], write, help } = KINDS[this.#kind];
    const slider = byId("budget");
    Object.assign(slider, { min: low, max: high, step });
    slider.value = value;
    this.#values[this.#kind] = value;
    const text = write(value);
    slider.setAttribute("aria-valuetext", text);
    byId("budget-text").textContent = text;
    byId("budget-help").textContent = help;
  }

  #moved(value) {
    this.#dirty.add("budget");
    this.#slide(value);
    this.#timer ??= setTimeout(() => this.#sendBudget(), 120);
  }

  #sendBudget() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#set({ budget: KINDS[this.#kind].write(this.#values[this.#kind]) });
  }
}
