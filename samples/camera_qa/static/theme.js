// Dark or light, before anything is drawn: as chosen here before, else as the system says.
(() => {
  const stored = localStorage.getItem("theme");
  const light = matchMedia("(prefers-color-scheme: light)").matches;
  document.documentElement.dataset.theme = stored ?? (light ? "light" : "dark");
})();
