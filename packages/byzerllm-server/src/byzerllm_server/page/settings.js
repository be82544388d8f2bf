// What is sent along with every question: system prompt, parameters, tools.

import { h, iconButton } from "./dom.js";
import { load, save } from "./store.js";
import { t } from "./texts.js";

const NUMBERS = {
  temperature: { min: 0, max: 2, step: 0.1 },
  top_p: { min: 0, max: 1, step: 0.05 },
  max_tokens: { min: 1, step: 1 },
  seed: { step: 1 },
};

const EXAMPLE_TOOL = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  },
];

export class Settings {
  constructor({ onClose }) {
    this.values = { system: "", tools: "", stop: "", ...load("settings", {}) };
    this.onClose = onClose;
    this.element = h("aside", { class: "settings", id: "settings", hidden: true });
  }

  /**
   * The parameters as the API takes them; what is empty is left to the server.
   * Throws an Error with a text for the user where the tools are no JSON.
   */
  parameters() {
    const sent = {};
    for (const name of Object.keys(NUMBERS)) {
      const value = Number.parseFloat(this.values[name]);
      if (Number.isFinite(value)) sent[name] = value;
    }
    const stops = this.values.stop.split("\n").filter(Boolean);
    if (stops.length) sent.stop = stops.map(unescaped);
    const tools = parseTools(this.values.tools);
    if (tools.length) sent.tools = tools;
    return sent;
  }

  render() {
    this.element.setAttribute("aria-label", t("settings"));
    this.element.replaceChildren(
      h("header", null, h("h2", null, t("settings")), iconButton("close", t("close"), this.onClose)),
      this.area("system", 5, t("systemHint")),
      h("div", { class: "pair" }, Object.keys(NUMBERS).map((name) => this.number(name))),
      this.area("stop", 2, t("stopHint")),
      this.tools(),
      h("button", { type: "button", class: "link", onclick: () => this.reset() }, t("reset")),
    );
  }

  keep(name, value) {
    this.values[name] = value;
    save("settings", this.values);
  }

  reset() {
    this.values = { system: "", tools: "", stop: "" };
    save("settings", this.values);
    this.render();
  }

  number(name) {
    return h(
      "label",
      null,
      h("span", null, t(`set.${name}`)),
      h("input", {
        type: "number",
        name,
        inputmode: "decimal",
        placeholder: t("byDefault"),
        value: this.values[name] ?? "",
        ...NUMBERS[name],
        oninput: (event) => this.keep(name, event.target.value),
      }),
    );
  }

  area(name, rows, placeholder, attributes = {}) {
    return h(
      "label",
      null,
      h("span", null, t(`set.${name}`)),
      h("textarea", { name, rows, placeholder, value: this.values[name], oninput: (event) => this.keep(name, event.target.value), ...attributes }),
    );
  }

  tools() {
    const problem = h("p", { class: "problem", id: "tools-problem", role: "alert" });
    const check = (event) => {
      this.keep("tools", event.target.value);
      try {
        parseTools(event.target.value);
        problem.textContent = "";
      } catch (error) {
        problem.textContent = error.message;
      }
      event.target.setAttribute("aria-invalid", String(Boolean(problem.textContent)));
    };
    const field = this.area("tools", 9, t("toolsHint"), { class: "mono", spellcheck: "false", "aria-describedby": "tools-problem", oninput: check });
    const example = () => {
      this.keep("tools", JSON.stringify(EXAMPLE_TOOL, null, 2));
      this.render();
    };
    return h("div", null, field, problem, h("button", { type: "button", class: "link", onclick: example }, t("exampleTool")));
  }
}

/** `\n` and `\t` as people write them into a line. */
function unescaped(text) {
  return text.replace(/\\([nt\\])/g, (_, sign) => ({ n: "\n", t: "\t", "\\": "\\" })[sign]);
}

function parseTools(text) {
  if (!text.trim()) return [];
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(t("toolsNoJson", { reason: error.message }));
  }
  if (!Array.isArray(tools)) throw new Error(t("toolsNoList"));
  return tools;
}
