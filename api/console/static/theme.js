// Loaded before anything is drawn, so that a chosen theme does not flash into the other one.
(() => {
  try {
    const chosen = localStorage.getItem("arkloop.theme")
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen
  } catch {
    // Storage is blocked: the system's theme counts.
  }
})()
