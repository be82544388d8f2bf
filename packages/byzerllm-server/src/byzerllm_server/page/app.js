// The frame of the page: views, model picker, key, language, theme.

import { get } from "./api.js";
import { CallView } from "./call.js";
import { ChatView } from "./chat.js";
import { h, icon, iconButton } from "./dom.js";
import { ModelsView } from "./models.js";
import { load, loadKey, save, saveKey, saveTheme } from "./store.js";
import { language, setLanguage, t } from "./texts.js";

const VIEWS = ["chat", "models", "call"];
const TOAST_MS = 8000;

class App {
  constructor() {
    this.model = load("model", "");
    this.names = [];
    this.asking = null;
    this.chat = new ChatView(this);
    this.models = new ModelsView({
      onError: (error) => this.explain(error),
      onModels: (models) => this.noteModels(models),
      onPick: (name) => {
        this.choose(name);
        this.open("chat");
      },
    });
    this.call = new CallView();
    this.views = { chat: this.chat, models: this.models, call: this.call };
    this.header = h("header", { class: "top" });
    this.status = h("div", { class: "offscreen", role: "status", "aria-live": "polite" });
    this.toasts = h("div", { class: "toasts", role: "status" });
    document.body.append(
      this.header,
      h("main", null, VIEWS.map((name) => this.views[name].element)),
      this.toasts,
      this.status,
    );
    document.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.renderHeader());
    window.addEventListener("hashchange", () => this.open(viewOfAddress()));
    this.render();
    this.open(viewOfAddress());
    this.loadModels();
  }

  render() {
    document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
    this.renderHeader();
    for (const view of Object.values(this.views)) view.render();
  }

  renderHeader() {
    const tabs = VIEWS.map((name) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": `view-${name}`,
          "aria-selected": String(name === this.view),
          tabindex: name === this.view ? "0" : "-1",
          onclick: () => this.open(name),
          onkeydown: (event) => this.moveTab(event, name),
        },
        t(`tab.${name}`),
      ),
    );
    const dark = isDark();
    this.header.replaceChildren(
      h("span", { class: "brand" }, h("img", { src: "ui/icon.svg", alt: "", width: 26, height: 26 }), h("span", null, "Byzer-LLM")),
      h("div", { class: "tabs", role: "tablist", "aria-label": t("views") }, tabs),
      h(
        "div",
        { class: "choices" },
        h(
          "button",
          { type: "button", class: "picker", id: "picker", "aria-haspopup": "dialog", title: `${t("pick")} (Ctrl+K)`, onclick: () => this.pickModel() },
          h("span", null, this.model || t("pick")),
          icon("chevron"),
        ),
        iconButton("key", loadKey() ? t("changeKey") : t("giveKey"), () => this.askKey(""), { id: "key", class: loadKey() ? "ghost on" : "ghost" }),
        iconButton("theme", dark ? t("toLight") : t("toDark"), () => this.switchTheme(), { id: "theme" }),
        h("button", { type: "button", class: "ghost text", id: "language", lang: language() === "zh" ? "en" : "zh-CN", title: t("otherLanguage"), onclick: () => this.switchLanguage() }, t("otherLanguage")),
      ),
    );
  }

  // Views.

  open(name) {
    this.view = name;
    if (viewOfAddress() !== name) history.replaceState(null, "", `#${name}`);
    document.title = `${t(`tab.${name}`)} – Byzer-LLM`;
    for (const [key, view] of Object.entries(this.views)) view.element.hidden = key !== name;
    this.renderHeader();
    if (name !== "chat") this.views[name].render();
    else this.chat.follow(true);
    this.models.schedule(0);
  }

  moveTab(event, name) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = VIEWS[(VIEWS.indexOf(name) + step + VIEWS.length) % VIEWS.length];
    this.open(next);
    document.getElementById(`tab-${next}`).focus();
  }

  key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.pickModel();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      this.chat.stop();
    }
  }

  // Models.

  async loadModels() {
    try {
      const { data } = await get("v1/models");
      this.names = data.map((model) => model.id);
      this.refreshPicker?.();
    } catch (error) {
      if (error.status === 401 && (await this.askKey(error.message))) return;
      this.toast(this.explain(error), t("tryAgain"), () => this.loadModels());
      return;
    }
    if (!this.names.includes(this.model)) this.choose(this.names[0] || "");
    else this.choose(this.model);
    // What a model does decides which examples the page shows.
    get("ui/models").then(
      ({ data }) => this.noteModels(data),
      () => {},
    );
  }

  noteModels(models) {
    this.tasks = new Map(models.map((model) => [model.name, model.task]));
    this.names = models.map((model) => model.name);
    this.refreshPicker?.();
    // A chat is what this page is for.
    const chats = models.filter((model) => model.task === "chat" || !model.task);
    if (!load("model", "") && this.tasks.get(this.model) && this.tasks.get(this.model) !== "chat" && chats.length) {
      this.model = chats[0].name;
      this.renderHeader();
      this.chat.renderWelcome();
    }
    const task = this.tasks.get(this.model) || "";
    if (task !== this.call.task || this.call.model !== this.model) {
      Object.assign(this.call, { task, model: this.model });
      if (this.view === "call") this.call.render();
    }
  }

  choose(name, kept = false) {
    const changed = name !== this.model;
    this.model = name;
    if (kept) save("model", name);
    Object.assign(this.call, { model: name, task: this.tasks?.get(name) || "" });
    this.renderHeader();
    this.chat.renderWelcome();
    if (this.view === "call") this.call.render();
    if (changed && kept) this.say(t("chosen", { model: name }));
  }

  pickModel() {
    if (document.querySelector("dialog[open]")) return;
    const opener = document.activeElement;
    let matching = [];
    let at = 0;
    const list = h("ul", { role: "listbox", id: "model-list", "aria-label": t("models") });
    const field = h("input", {
      type: "text",
      role: "combobox",
      "aria-expanded": "true",
      "aria-controls": "model-list",
      "aria-autocomplete": "list",
      "aria-label": t("pick"),
      placeholder: t("filter"),
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => show(field.value, 0),
      onkeydown: (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (step && matching.length) {
          event.preventDefault();
          show(field.value, (at + step + matching.length) % matching.length);
        } else if (event.key === "Enter" && !event.isComposing) {
          event.preventDefault();
          if (matching.length) take(matching[at]);
        }
      },
    });
    const dialog = h("dialog", { class: "models", "aria-label": t("pick"), onclick: (event) => event.target === dialog && dialog.close() }, h("div", null, field, list));
    const take = (name) => {
      this.choose(name, true);
      dialog.close();
    };
    const show = (filter, active) => {
      matching = this.names.filter((name) => name.toLowerCase().includes(filter.trim().toLowerCase()));
      at = active;
      list.replaceChildren(
        ...matching.map((name, index) =>
          h(
            "li",
            { role: "option", id: `option-${index}`, "aria-selected": String(index === at), class: name === this.model ? "current" : "", onclick: () => take(name) },
            h("span", null, name),
            h("span", { class: "muted" }, this.tasks?.get(name) ? t(`task.${this.tasks.get(name)}`, {}, this.tasks.get(name)) : ""),
          ),
        ),
        ...(matching.length ? [] : [h("li", { class: "none muted" }, this.names.length ? t("noMatch") : t("noModels"))]),
      );
      field.setAttribute("aria-activedescendant", matching.length ? `option-${at}` : "");
      list.children[at]?.scrollIntoView({ block: "nearest" });
    };
    this.refreshPicker = () => show(field.value, Math.min(at, Math.max(0, matching.length - 1)));
    dialog.addEventListener("close", () => {
      this.refreshPicker = null;
      dialog.remove();
      const back = opener?.isConnected && opener !== document.body ? opener : document.getElementById(this.view === "chat" ? "question" : "picker");
      back?.focus();
    });
    document.body.append(dialog);
    show("", Math.max(0, this.names.indexOf(this.model)));
    dialog.showModal();
    field.focus();
  }

  // The key.

  /** Ask for the key; whether one was given. Who asks while it is asked for gets the same answer. */
  askKey(reason) {
    this.asking ||= this.openKeyDialog(reason).finally(() => {
      this.asking = null;
    });
    return this.asking;
  }

  openKeyDialog(reason) {
    return new Promise((resolve) => {
      const field = h("input", { type: "password", name: "key", id: "api-key", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-reason" });
      let given = false;
      const take = (event) => {
        event.preventDefault();
        const key = field.value.trim();
        given = Boolean(key);
        saveKey(key);
        dialog.close();
      };
      const dialog = h(
        "dialog",
        { class: "key", "aria-labelledby": "key-title" },
        h(
          "form",
          { onsubmit: take },
          h("h2", { id: "key-title" }, t("keyTitle")),
          h("p", { id: "key-reason", class: "muted" }, t("keyWhy")),
          reason && loadKey() ? h("p", { class: "problem", role: "alert" }, t("keyRefused")) : "",
          h("label", null, h("span", null, t("keyLabel")), field),
          h(
            "div",
            { class: "row" },
            loadKey() && h("button", { type: "button", onclick: () => { saveKey(""); dialog.close(); } }, t("forgetKey")),
            h("button", { type: "button", onclick: () => dialog.close() }, t("cancel")),
            h("button", { type: "submit", class: "primary" }, t("useKey")),
          ),
        ),
      );
      dialog.addEventListener("close", () => {
        dialog.remove();
        this.renderHeader();
        if (this.view === "call") this.call.render();
        resolve(given);
        if (given) this.loadModels();
      });
      document.body.append(dialog);
      dialog.showModal();
      field.focus();
    });
  }

  // What is said.

  /** A text for an error of a call. */
  explain(error) {
    if (error.status === 401) return t("keyNeeded");
    const said = t(`error.${error.code}`, {}, error.message) || t("error.status", { status: error.status });
    return error.requestId ? `${said} (${t("requestId", { id: error.requestId })})` : said;
  }

  /** To those who listen to the page. */
  say(text) {
    this.status.textContent = text;
  }

  toast(text, label, action) {
    const toast = h("div", { class: "toast" }, h("span", null, text));
    const end = () => {
      clearTimeout(timer);
      toast.remove();
    };
    const timer = setTimeout(end, TOAST_MS);
    if (label) {
      toast.append(
        h("button", { type: "button", class: "link", onclick: () => {
          end();
          action();
        } }, label),
      );
    }
    toast.append(iconButton("close", t("close"), end));
    this.toasts.replaceChildren(toast);
  }

  // Language and theme.

  switchLanguage() {
    setLanguage(language() === "zh" ? "en" : "zh");
    this.render();
    this.open(this.view);
    document.getElementById("language").focus();
  }

  switchTheme() {
    const theme = isDark() ? "light" : "dark";
    // The system's own theme is followed again once it is chosen.
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    if (theme === system) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    saveTheme(theme === system ? "" : theme);
    this.renderHeader();
    document.getElementById("theme").focus();
  }
}

function viewOfAddress() {
  const name = location.hash.slice(1);
  return VIEWS.includes(name) ? name : "chat";
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

new App();
