// Keyboard shortcuts, outside of fields, and the list of them.

import { byId } from "./words.js";

const FIELDS = "input:not([type=radio]):not([type=range]), textarea, select, [contenteditable]";

export function listenToKeys({ controls, nextOverlay, chooseTab }) {
  const theme = () => {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
    localStorage.setItem("theme", root.dataset.theme);
  };
  const help = () => byId("help").showModal();
  byId("theme").addEventListener("click", theme);
  byId("help-open").addEventListener("click", help);
  const acts = {
    "/": () => byId("question").focus(),
    p: () => controls.pause(),
    o: nextOverlay,
    t: theme,
    "?": help,
    "[": () => controls.nudge(-1),
    "]": () => controls.nudge(1),
    Escape: () => controls.cancel(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (event.target.closest(FIELDS)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) {
      event.preventDefault();
      act();
    } else if (/^[1-9]$/.test(event.key)) {
      chooseTab(Number(event.key) - 1);
    }
  });
}
