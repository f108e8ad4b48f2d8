// How things are said: ages, states, and what to do about an error.

export const byId = (id) => document.getElementById(id);

export function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function age(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

// How many vision tokens were encoded; "" where that is simply all of them.
export function encoded({ encode, encoded: count, total }) {
  return encode === "full" && count === total ? "" : `${count} encoded`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString([], { hour12: false });
}

// What lies over the live picture while it is not live; "" while it is.
export function veil(camera) {
  const why = camera.error ? `: ${camera.error}` : "";
  switch (camera.state) {
    case "CONNECTING": return "Connecting…";
    case "STALE": return "The newest picture is too old.\nNo question is answered about it.";
    case "FROZEN": return "The camera repeats one picture.\nNo question is answered about it.";
    case "LOST": return `The camera is lost${why}.\nIt is tried again and again.`;
    case "ENDED": return "The file has ended.";
    case "CLOSED": return "This camera was closed.";
    default: return "";
  }
}

export const FINISHED = {
  cancelled: "cancelled",
  deadline: "cut off by the deadline",
  length: "cut off at the longest answer",
  repetition: "ended: it began to repeat itself",
};

export const STAGES = {
  wait: ["waiting", "--s-wait"],
  preprocess: ["preprocess", "--s-preprocess"],
  vision: ["vision encoder", "--s-vision"],
  first_layer: ["first layer", "--s-first"],
  scorer: ["scorer", "--s-scorer"],
  select: ["select", "--s-select"],
  prefill: ["prefill", "--s-prefill"],
  other: ["other", "--s-other"],
};
