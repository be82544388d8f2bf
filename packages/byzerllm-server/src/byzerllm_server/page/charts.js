// Sparklines: a line, what is under it, and the newest point.

import { s } from "./dom.js";

const WIDTH = 220;
const HEIGHT = 48;
const EDGE = 3;

/**
 * A small chart of the newest `most` values; `null` leaves a gap. Begins at zero.
 * `label` says to those who do not see it what it shows.
 */
export function sparkline(values, most, label) {
  const shown = values.slice(-most);
  const top = Math.max(...shown.map((value) => value ?? 0), 1e-9);
  const x = (index) => EDGE + ((WIDTH - 2 * EDGE) * (index + most - shown.length)) / (most - 1);
  const y = (value) => HEIGHT - EDGE - ((HEIGHT - 2 * EDGE) * value) / top;
  const chart = s("svg", {
    class: "sparkline",
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": label,
  });
  chart.append(s("path", { class: "base", d: `M${EDGE} ${HEIGHT - EDGE}H${WIDTH - EDGE}` }));
  for (const run of runs(shown)) {
    const points = run.map(([index, value]) => `${x(index).toFixed(1)} ${y(value).toFixed(1)}`);
    const [first, last] = [x(run[0][0]), x(run.at(-1)[0])].map((value) => value.toFixed(1));
    if (run.length > 1) {
      chart.append(s("path", { class: "area", d: `M${first} ${HEIGHT - EDGE}L${points.join("L")}L${last} ${HEIGHT - EDGE}Z` }));
    }
    // One point alone is a line of no length, which round ends make a dot.
    chart.append(s("path", { class: "line", d: `M${points.join("L")}${run.length > 1 ? "" : "h0"}` }));
  }
  return chart;
}

/** Stretches without a gap, as [index, value]. */
function runs(values) {
  const found = [];
  let open = null;
  values.forEach((value, index) => {
    if (value === null || value === undefined) open = null;
    else if (open) open.push([index, value]);
    else found.push((open = [[index, value]]));
  });
  return found;
}
