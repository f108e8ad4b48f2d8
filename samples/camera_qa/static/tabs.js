// One tab for each camera: its state as colour and word, chosen by click, arrows or number.

import { byId, element } from "./words.js";

export function showTabs(sources, current, choose) {
  const tabs = [...sources.values()].map((source) => {
    const chosen = source.id === current;
    const state = source.camera?.state ?? "CONNECTING";
    const tab = element("button", {
      type: "button", className: "tab", role: "tab", id: `tab-${source.id}`,
      "aria-selected": String(chosen), "aria-controls": "panel", tabindex: chosen ? "0" : "-1",
      title: source.shown,
    }, element("i", { className: "dot", "data-state": state, "aria-hidden": "true" }),
    element("span", { text: source.name }), element("small", { text: state }));
    tab.addEventListener("click", () => choose(source.id));
    return tab;
  });
  const focused = byId("tabs").contains(document.activeElement);
  byId("tabs").replaceChildren(...tabs);
  byId("panel").setAttribute("aria-labelledby", `tab-${current}`);
  if (focused) byId(`tab-${current}`)?.focus();
}

export function listenToTabs(sources, current, choose) {
  byId("tabs").addEventListener("keydown", (event) => {
    const ids = [...sources.keys()];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !ids.length) return;
    event.preventDefault();
    choose(ids[(ids.indexOf(current()) + step + ids.length) % ids.length]);
  });
}
