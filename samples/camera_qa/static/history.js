// The answers of one camera, newest first; each can be looked at again.

import { age, byId, clock, element, encoded } from "./words.js";

export function showHistory(entries, viewed, open) {
  byId("history-empty").hidden = entries.length > 0;
  const rows = [...entries].reverse().map((entry) => row(entry, entry.id === viewed, open));
  byId("history").replaceChildren(...rows);
}

export function addEntry(entry, most, open) {
  byId("history-empty").hidden = true;
  const list = byId("history");
  list.prepend(row(entry, false, open));
  while (list.children.length > most) list.lastChild.remove();
}

function row(entry, current, open) {
  const failed = entry.type === "failed";
  const said = failed ? `${entry.code}: ${entry.message}` : entry.text || `(${entry.finish_reason})`;
  const figures = failed ? "" : [`${entry.kept}/${entry.total}`, encoded(entry),
    `${Math.round(entry.ttft_ms)} ms`, age(entry.age_s)].filter(Boolean).join(" · ");
  const button = element("button", { type: "button" },
    element("time", { text: clock(entry.wall_s) }),
    element("span", { className: "asked", text: entry.question }),
    element("span", { className: "said", text: said }),
    element("span", { className: "figures", text: figures }));
  button.addEventListener("click", () => open(entry));
  const item = element("li", { className: failed ? "failed" : "" }, button);
  if (current) item.setAttribute("aria-current", "true");
  return item;
}
