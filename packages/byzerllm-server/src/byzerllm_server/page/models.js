// The view of the models: workers, load, tokens per second, time to first token, live.

import { get } from "./api.js";
import { sparkline } from "./charts.js";
import { h } from "./dom.js";
import { number, t } from "./texts.js";

const POLL_MS = 2000;
const POINTS = 60;

export class ModelsView {
  /** `onError` is told why figures did not come; `onModels` gets them; `onPick` a name to chat with. */
  constructor({ onError, onModels, onPick }) {
    this.element = h("section", { class: "view models", id: "view-models", role: "tabpanel", "aria-labelledby": "tab-models" });
    this.onError = onError;
    this.onModels = onModels;
    this.onPick = onPick;
    this.models = [];
    this.history = new Map();
    this.problem = "";
    this.opened = new Set();
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.schedule(0));
  }

  get watched() {
    return !this.element.hidden && document.visibilityState === "visible";
  }

  /** Poll while the view is looked at, and only then. */
  schedule(delay) {
    clearTimeout(this.timer);
    if (this.watched) this.timer = setTimeout(() => this.poll(), delay);
  }

  async poll() {
    clearTimeout(this.timer);
    try {
      this.models = (await get("ui/models")).data;
      this.problem = "";
      this.remember();
      this.onModels(this.models);
    } catch (error) {
      this.problem = this.onError(error);
    }
    if (this.watched) {
      this.render();
      this.schedule(POLL_MS);
    }
  }

  remember() {
    for (const model of this.models) {
      const points = this.history.get(model.name) || { tokens: [], ttft: [], running: [] };
      points.tokens.push(model.tokens_per_second);
      points.ttft.push(model.ttft_p50);
      points.running.push(model.running);
      for (const values of Object.values(points)) values.splice(0, values.length - POINTS);
      this.history.set(model.name, points);
    }
  }

  render() {
    // What had the focus keeps it: everything is drawn anew every two seconds.
    const focused = document.activeElement?.dataset?.keep;
    const totals = this.models.reduce((sum, model) => sum + model.num_workers, 0);
    this.element.replaceChildren(
      h(
        "div",
        { class: "view-head" },
        h("h1", null, t("models")),
        h("p", { class: "muted" }, t("modelsSummary", { models: this.models.length, workers: totals })),
      ),
      this.problem ? h("p", { class: "notice error", role: "alert" }, this.problem) : "",
      !this.models.length && !this.problem ? h("p", { class: "notice" }, t("noModels")) : "",
      h("div", { class: "cards" }, this.models.map((model) => this.card(model))),
    );
    if (focused) this.element.querySelector(`[data-keep="${CSS.escape(focused)}"]`)?.focus();
  }

  card(model) {
    const history = this.history.get(model.name);
    const ready = model.workers.filter((worker) => worker.state === "ready").length;
    const ttft = history.ttft.findLast((value) => value !== null) ?? null;
    return h(
      "article",
      { class: "card", "aria-label": model.name },
      h(
        "header",
        null,
        h("h2", null, model.name),
        h("span", { class: `badge ${stateClass(model.state)}` }, t(`state.${model.state}`, {}, model.state)),
        model.task === "chat" || !model.task
          ? h("button", { type: "button", class: "link", "data-keep": `chat ${model.name}`, onclick: () => this.onPick(model.name) }, t("chatWith"))
          : "",
      ),
      h("p", { class: "muted tags" }, [model.backend, model.task && t(`task.${model.task}`, {}, model.task), model.max_model_len && t("context", { tokens: number(model.max_model_len) })].filter(Boolean).join(" · ")),
      loadBar(model),
      h(
        "div",
        { class: "charts" },
        chart(t("tokensPerSecond"), rate(model.tokens_per_second), history.tokens, (value) => rate(value)),
        chart(t("ttft"), seconds(ttft), history.ttft, (value) => seconds(value)),
        chart(t("running"), number(model.running), history.running, (value) => number(value)),
      ),
      h(
        "p",
        { class: "muted counts" },
        t("counts", { done: number(model.done), failed: number(model.failed), refused: number(model.refused) }),
      ),
      this.workers(model, ready),
    );
  }

  workers(model, ready) {
    const head = ["worker", "stateHead", "node", "running", "waiting", "tokensPerSecond", "ttft", "memory", "uptime"];
    return h(
      "details",
      {
        open: this.opened.has(model.name),
        ontoggle: (event) => this.opened[event.target.open ? "add" : "delete"](model.name),
      },
      h("summary", { "data-keep": `workers ${model.name}` }, t("workersReady", { ready, all: model.num_workers })),
      h(
        "div",
        { class: "table", tabindex: "0" },
        h(
          "table",
          null,
          h("thead", null, h("tr", null, head.map((name) => h("th", { scope: "col" }, t(name))))),
          h("tbody", null, model.workers.map(workerRow)),
        ),
      ),
    );
  }
}

function workerRow(worker) {
  return h(
    "tr",
    null,
    h("th", { scope: "row" }, h("code", null, worker.id)),
    h("td", null, worker.cooling > 0 ? t("cooling", { seconds: Math.ceil(worker.cooling) }) : t(`state.${worker.state}`, {}, worker.state)),
    h("td", null, worker.node),
    h("td", null, `${worker.running} / ${worker.concurrency}`),
    h("td", null, number(worker.queued)),
    h("td", null, rate(worker.tokens_per_second)),
    h("td", null, seconds(worker.ttft_p50)),
    h("td", null, worker.rss ? `${number(Math.round(worker.rss / 2 ** 20))} MiB` : "–"),
    h("td", null, worker.uptime === null ? "–" : age(worker.uptime)),
  );
}

function loadBar(model) {
  const share = model.concurrency ? Math.min(1, model.running / model.concurrency) : 0;
  const text = t("load", { running: number(model.running), concurrency: number(model.concurrency), waiting: number(model.queued) });
  const bar = h("div", { class: "bar" }, h("span", null));
  bar.firstChild.style.width = `${Math.round(100 * share)}%`;
  bar.firstChild.className = share > 0.9 || model.queued ? "full" : "";
  return h("div", { class: "load" }, bar, h("span", { class: "muted" }, text));
}

function chart(title, now, values, format) {
  const known = values.filter((value) => value !== null);
  const top = known.length ? format(Math.max(...known)) : "–";
  return h(
    "figure",
    null,
    h("figcaption", null, h("span", { class: "muted" }, title), h("strong", null, now)),
    sparkline(values, POINTS, t("chartLabel", { title, now, top })),
  );
}

function rate(value) {
  return number(value, value < 10 ? 1 : 0);
}

/** Seconds as people read them. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${number(1000 * value, value < 0.01 ? 1 : 0)} ms` : `${number(value, 2)} s`;
}

function age(value) {
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 172_800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86_400)} d`;
}

function stateClass(state) {
  if (state === "ready") return "good";
  return state === "degraded" ? "bad" : "busy";
}
