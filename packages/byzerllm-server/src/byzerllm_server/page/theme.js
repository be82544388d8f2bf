// Runs before the first paint, so that a chosen theme does not flash.
(() => {
  try {
    const theme = localStorage.getItem("byzerllm.theme");
    if (theme) document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is closed to this page: the system's theme it is.
  }
})();
