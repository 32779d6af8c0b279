// Dark or light, before anything is painted: a plain script in the head, for a module would come too late.
(() => {
  const KEY = "vitrify-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  function chosen() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off
    }
  }

  function paint() {
    root.dataset.theme = chosen() ?? (system.matches ? "dark" : "light");
    document.dispatchEvent(new Event("theme"));
  }

  // The other one from now on; where that is what the system has, the system is followed again.
  document.addEventListener("theme-toggle", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      if (next === (system.matches ? "dark" : "light")) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, next);
    } catch {
      root.dataset.theme = next;
      document.dispatchEvent(new Event("theme"));
      return;
    }
    paint();
  });
  system.addEventListener("change", paint);
  paint();
})();
