"use strict";
// What only the browser knows: its colours and width, where the keyboard is, and whether the server still answers.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 700px)");
  const SILENT_MS = 15000; // 10,000 candidates take the server two seconds to read
  let told = null;
  let heard = Date.now();

  const webgl = (() => {
    try { return !!document.createElement("canvas").getContext("webgl"); } catch { return false; }
  })();
  const look = () => ({ dark: dark.matches, narrow: narrow.matches, webgl });
  for (const query of [dark, narrow]) {
    query.addEventListener("change", () => window.dash_clientside.set_props("look", { data: look() }));
  }

  // A hidden page is not called every second: its silence says nothing.
  document.addEventListener("visibilitychange", () => { heard = Date.now(); });
  setInterval(() => {
    const lost = document.getElementById("lost");
    if (lost && document.visibilityState === "visible" && Date.now() - heard > SILENT_MS) lost.hidden = false;
  }, 1000);

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.page = {
    look,
    heard: () => { heard = Date.now(); return true; },
    focus: (children, chosen) => {
      if (chosen && chosen !== told) document.getElementById("detail").focus();
      told = chosen;
      return chosen;
    },
  };
})();
