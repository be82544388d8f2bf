// The view to chat.

import { ApiError, streamChat } from "./api.js";
import { absorb, Conversation, statsOf } from "./conversation.js";
import { copyButton, h, icon, iconButton } from "./dom.js";
import { imageFiles, readImage } from "./images.js";
import { codeBox, MarkdownView } from "./markdown.js";
import { seconds } from "./models.js";
import { Settings } from "./settings.js";
import { load, save } from "./store.js";
import { number, t } from "./texts.js";

const NEAR_PIXELS = 32;

export class ChatView {
  /** `app` has: model, say(text), toast(text, label, action), askKey(reason), pickModel(). */
  constructor(app) {
    this.app = app;
    this.conversation = new Conversation();
    this.views = new Map();
    this.images = [];
    this.draft = load("draft", "");
    this.running = null;
    this.leaving = false;
    this.frame = 0;
    this.following = true;
    this.settings = new Settings({ onClose: () => this.toggleSettings(false) });
    this.log = h("div", { class: "log", role: "log", "aria-live": "off", tabindex: "-1" });
    this.scroller = h("div", { class: "scroller", onscroll: () => this.noteScroll() }, this.log);
    this.composer = h("form", { class: "composer", onsubmit: (event) => this.submit(event) });
    this.element = h(
      "section",
      { class: "view chat", id: "view-chat", role: "tabpanel", "aria-labelledby": "tab-chat" },
      h("div", { class: "talk" }, this.scroller, this.composer),
      this.settings.element,
    );
    this.takeDrops();
    // A browser breaks the streams of a page before it hides the page.
    window.addEventListener("beforeunload", () => {
      this.leaving = true;
    });
    window.addEventListener("pagehide", () => {
      this.stop();
      this.conversation.save();
    });
    this.settings.element.hidden = !load("settingsOpen", false) || window.innerWidth < 900;
  }

  // Drawing.

  render() {
    this.settings.render();
    this.views.clear();
    this.log.replaceChildren();
    this.log.setAttribute("aria-label", t("conversation"));
    this.renderWelcome();
    for (const message of this.conversation.messages) this.show(message);
    this.renderComposer();
    this.follow(true);
  }

  /** Who is talked to, while nothing was said yet. */
  renderWelcome() {
    this.log.querySelector(".welcome")?.remove();
    if (!this.conversation.messages.length) this.log.append(this.welcome());
  }

  welcome() {
    const hints = ["hintOne", "hintTwo", "hintThree"].map((name) =>
      h("button", { type: "button", class: "hint", onclick: () => this.send(t(name), []) }, t(name)),
    );
    return h(
      "div",
      { class: "welcome" },
      h("h1", null, t("welcome")),
      h("p", { class: "muted" }, this.app.model ? t("welcomeModel", { model: this.app.model }) : t("welcomeNoModel")),
      this.app.model ? h("div", { class: "hints" }, hints) : "",
    );
  }

  show(message) {
    if (!this.views.size) this.log.querySelector(".welcome")?.remove();
    const view = message.role === "user" ? new Question(message, this) : new Answer(message, this);
    this.views.get(message.id)?.element.replaceWith(view.element);
    if (!view.element.isConnected) this.log.append(view.element);
    this.views.set(message.id, view);
    return view;
  }

  renderComposer() {
    const text = h("textarea", {
      id: "question",
      rows: 1,
      placeholder: t("placeholder"),
      "aria-label": t("placeholder"),
      value: this.draft,
      oninput: (event) => this.noteDraft(event.target.value),
      onkeydown: (event) => this.typed(event),
      onpaste: (event) => this.attach(imageFiles(event.clipboardData), event),
    });
    const files = h("input", {
      type: "file",
      accept: "image/*",
      multiple: true,
      hidden: true,
      id: "files",
      onchange: (event) => {
        this.attach(imageFiles(event.target));
        event.target.value = "";
      },
    });
    this.text = text;
    this.thumbs = h("div", { class: "thumbs", hidden: true });
    this.go = h("button", { type: "submit", class: "primary round" });
    this.composer.setAttribute("aria-label", t("placeholder"));
    this.composer.replaceChildren(
      h(
        "div",
        { class: "box" },
        this.thumbs,
        text,
        h(
          "div",
          { class: "tools" },
          iconButton("image", t("attach"), () => files.click(), { id: "attach" }),
          files,
          iconButton("settings", t("settings"), () => this.toggleSettings(), {
            id: "open-settings",
            "aria-controls": "settings",
            "aria-expanded": String(!this.settings.element.hidden),
          }),
          iconButton("trash", t("clear"), () => this.clear(), { id: "clear" }),
          h("span", { class: "muted keys" }, t("keys")),
          this.go,
        ),
      ),
    );
    this.renderThumbs();
    this.renderGo();
    this.fit();
  }

  renderGo() {
    const label = this.running ? t("stop") : t("send");
    this.go.replaceChildren(icon(this.running ? "stop" : "send"));
    this.go.title = label;
    this.go.id = this.running ? "stop" : "send";
    this.go.setAttribute("aria-label", label);
    this.go.disabled = !this.running && !this.draft.trim() && !this.images.length;
  }

  renderThumbs() {
    this.thumbs.hidden = !this.images.length;
    this.thumbs.replaceChildren(
      ...this.images.map((url, index) =>
        h(
          "div",
          { class: "thumb" },
          h("img", { src: url, alt: t("image", { number: index + 1 }) }),
          iconButton("close", t("removeImage", { number: index + 1 }), () => {
            this.images.splice(index, 1);
            this.renderThumbs();
            this.renderGo();
            this.text.focus();
          }),
        ),
      ),
    );
  }

  toggleSettings(open = this.settings.element.hidden) {
    this.settings.element.hidden = !open;
    save("settingsOpen", open);
    const button = this.composer.querySelector("#open-settings");
    button.setAttribute("aria-expanded", String(open));
    if (open) this.settings.element.querySelector("textarea").focus();
    else button.focus();
  }

  fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, window.innerHeight * 0.4)}px`;
  }

  noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR_PIXELS;
  }

  /** Keep the newest in sight, unless the reader went back. */
  follow(always = false) {
    if (always) this.following = true;
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  // Writing.

  noteDraft(text) {
    this.draft = text;
    save("draft", text);
    this.fit();
    this.renderGo();
  }

  typed(event) {
    // With an input method Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    if (!this.running) this.submit();
  }

  submit(event) {
    event?.preventDefault();
    if (this.running) {
      this.stop();
      return;
    }
    const text = this.draft.trim();
    if (!text && !this.images.length) return;
    if (this.send(text, this.images)) {
      this.images = [];
      this.text.value = "";
      this.noteDraft("");
      this.renderThumbs();
      this.renderGo();
    }
  }

  takeDrops() {
    let depth = 0;
    const mark = (change) => {
      depth = Math.max(0, depth + change);
      this.element.classList.toggle("dropping", depth > 0);
    };
    this.element.addEventListener("dragenter", () => mark(1));
    this.element.addEventListener("dragleave", () => mark(-1));
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      mark(0);
      this.attach(imageFiles(event.dataTransfer));
    });
  }

  async attach(files, event) {
    if (!files.length) return;
    event?.preventDefault();
    for (const file of files) {
      try {
        this.images.push(await readImage(file));
      } catch {
        this.app.toast(t("noImage", { name: file.name }));
      }
    }
    this.renderThumbs();
    this.renderGo();
  }

  clear() {
    this.stop();
    const before = this.conversation.messages;
    if (!before.length) return;
    const put = (messages) => {
      this.conversation.messages = messages;
      this.keep();
      this.render();
      this.text.focus();
    };
    put([]);
    this.app.toast(t("cleared"), t("undo"), () => put(before));
  }

  keep() {
    if (!this.conversation.save() && !this.warned) {
      this.warned = true;
      this.app.toast(t("notKept"));
    }
  }

  // Asking.

  /** Ask; whether there is a model to ask. */
  send(text, images) {
    if (this.running || !this.ready()) return false;
    this.show(this.conversation.ask(text, images));
    this.generate();
    return true;
  }

  ready() {
    if (!this.app.model) {
      this.app.pickModel();
      return false;
    }
    try {
      this.settings.parameters();
    } catch (error) {
      this.app.toast(error.message);
      this.toggleSettings(true);
      return false;
    }
    return true;
  }

  /** Answer anew from this message on; what came after it is taken away. */
  again(message) {
    if (this.running || !this.ready()) return;
    this.remove(this.conversation.cut(message));
    this.generate();
  }

  resend(message, text) {
    if (this.running || !this.ready()) return;
    const [, ...after] = this.conversation.cut(message);
    this.remove(after);
    message.text = text;
    this.conversation.messages.push(message);
    this.show(message);
    this.generate();
  }

  remove(messages) {
    for (const { id } of messages) {
      this.views.get(id).element.remove();
      this.views.delete(id);
    }
  }

  stop() {
    this.running?.abort();
  }

  async generate() {
    const stopping = new AbortController();
    this.running = stopping;
    this.leaving = false;
    const body = { model: this.app.model, messages: this.conversation.sent(this.settings.values.system), ...this.settings.parameters() };
    const message = this.conversation.answer(this.app.model);
    this.show(message);
    this.follow(true);
    this.renderGo();
    this.app.say(t("answering"));
    const times = { start: performance.now(), first: 0, last: 0 };
    const onChunk = (chunk) => {
      if (absorb(message, chunk)) {
        times.last = performance.now();
        times.first ||= times.last;
      }
      this.conversation.saveSoon();
      this.frame ||= requestAnimationFrame(() => this.draw(message));
    };
    try {
      message.requestId = await this.ask(body, stopping.signal, onChunk, times);
    } catch (error) {
      if (error.name === "AbortError" || this.leaving) message.stopped = true;
      else message.error = (error instanceof ApiError ? error : new ApiError(String(error))).plain;
    }
    message.calls = message.calls.filter(Boolean);
    message.running = false;
    message.stats = statsOf(message, { ...times, end: performance.now() });
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.running === stopping) this.running = null;
    this.keep();
    // It may have been cleared away meanwhile.
    if (this.views.has(message.id)) this.draw(message);
    this.renderGo();
    this.app.say(spoken(message));
  }

  /** Ask; once more with each key that is given when the server wants another one. */
  async ask(body, signal, onChunk, times) {
    for (;;) {
      try {
        return await streamChat(body, signal, onChunk);
      } catch (error) {
        if (error.status !== 401 || !(await this.app.askKey(error.message))) throw error;
        times.start = performance.now();
      }
    }
  }

  draw(message) {
    this.frame = 0;
    this.views.get(message.id)?.update();
    this.follow();
  }
}

function spoken(message) {
  if (message.error) return t("failed", { message: errorText(message.error) });
  return message.stopped ? t("stopped") : `${t("answered")} ${message.text.slice(0, 500)}`;
}

function errorText({ code, message, status }) {
  return t(`error.${code}`, {}, message) || t("error.status", { status });
}

/** What the user wrote. */
class Question {
  constructor(message, chat) {
    this.message = message;
    this.chat = chat;
    this.element = h("article", { class: "message user", "aria-label": t("you") });
    this.render();
  }

  render() {
    const { text, images = [] } = this.message;
    this.element.replaceChildren(
      h(
        "div",
        { class: "bubble" },
        images.length ? h("div", { class: "pictures" }, images.map((url, index) => h("img", { src: url, alt: t("image", { number: index + 1 }) }))) : "",
        text ? h("div", { class: "plain" }, text) : "",
      ),
      h(
        "div",
        { class: "actions" },
        copyButton(() => text, t("copy"), t("copied")),
        iconButton("edit", t("edit"), () => this.edit(), { class: "ghost edit" }),
      ),
    );
  }

  edit() {
    if (this.chat.running) return;
    const field = h("textarea", {
      rows: Math.min(12, this.message.text.split("\n").length + 1),
      "aria-label": t("edit"),
      value: this.message.text,
      onkeydown: (event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          this.render();
          this.element.querySelector(".edit").focus();
        } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
          event.preventDefault();
          send();
        }
      },
    });
    const send = () => {
      const text = field.value.trim();
      if (text || this.message.images?.length) this.chat.resend(this.message, text);
    };
    this.element.replaceChildren(
      h(
        "div",
        { class: "editor" },
        field,
        h(
          "div",
          { class: "row" },
          h("button", { type: "button", onclick: () => this.render() }, t("cancel")),
          h("button", { type: "button", class: "primary", onclick: send }, t("resend")),
        ),
      ),
    );
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

/** What a model answered, or is about to. */
class Answer {
  constructor(message, chat) {
    this.message = message;
    this.chat = chat;
    this.thought = null;
    this.body = new MarkdownView();
    this.reasoning = h("details", { class: "reasoning", hidden: true }, h("summary"));
    this.calls = h("div", { class: "calls" });
    this.wait = h("div", { class: "wait", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    this.end = h("footer");
    this.element = h("article", { class: "message assistant", "aria-label": message.model }, this.reasoning, this.body.element, this.calls, this.wait, this.end);
    this.update();
  }

  update() {
    const { message } = this;
    const finished = !message.running;
    if (message.reasoning) this.think(finished);
    if (message.text) this.body.update(message.text, finished);
    if (message.calls.length) this.renderCalls(finished);
    this.wait.hidden = finished || Boolean(message.text || message.calls.length);
    this.element.classList.toggle("running", !finished);
    this.element.setAttribute("aria-busy", String(!finished));
    if (finished) this.renderEnd();
  }

  think(finished) {
    if (!this.thought) {
      this.thought = new MarkdownView();
      this.reasoning.append(this.thought.element);
      this.reasoning.hidden = false;
    }
    const thinking = !finished && !this.message.text;
    this.reasoning.querySelector("summary").textContent = thinking ? t("thinking") : t("thought");
    this.thought.update(this.message.reasoning, finished);
  }

  renderCalls(finished) {
    const { calls } = this.message;
    const open = finished && calls.some((call) => call.result === undefined) && !this.message.error;
    const cards = calls.map((call) => this.callCard(call, finished));
    const go = open ? h("button", { type: "submit", class: "primary" }, t("sendResults")) : "";
    this.calls.replaceChildren(h("form", { onsubmit: (event) => this.submitResults(event) }, cards, go));
  }

  callCard(call, finished) {
    return h(
      "section",
      { class: "tool-call" },
      h("h3", null, icon("tool"), h("code", null, call.name)),
      finished ? codeBox(pretty(call.arguments), "json", t("arguments")) : h("pre", { class: "plain" }, call.arguments),
      call.result !== undefined ? codeBox(pretty(call.result), "json", t("result")) : "",
      finished && call.result === undefined
        ? h("label", null, h("span", null, t("giveResult")), h("textarea", { name: call.id, rows: 2, class: "mono", placeholder: t("resultHint") }))
        : "",
    );
  }

  submitResults(event) {
    event.preventDefault();
    if (this.chat.running || !this.chat.ready()) return;
    const fields = event.target.querySelectorAll("textarea");
    let index = 0;
    for (const call of this.message.calls) {
      if (call.result === undefined) call.result = fields[index++].value;
    }
    const [, ...after] = this.chat.conversation.cut(this.message);
    this.chat.remove(after);
    this.chat.conversation.messages.push(this.message);
    this.renderCalls(true);
    this.chat.generate();
  }

  renderEnd() {
    const { message, chat } = this;
    this.end.replaceChildren(
      message.error ? this.problem() : "",
      h(
        "div",
        { class: "actions" },
        copyButton(() => message.text, t("copy"), t("copied")),
        iconButton("again", t("again"), () => chat.again(message), { class: "ghost again" }),
        h("span", { class: "muted stats", title: message.requestId ? t("requestId", { id: message.requestId }) : "" }, statsText(message)),
      ),
    );
  }

  problem() {
    const { error } = this.message;
    return h(
      "div",
      { class: "notice error", role: "alert" },
      icon("error"),
      h(
        "div",
        null,
        h("p", null, errorText(error)),
        error.requestId ? h("p", { class: "muted" }, t("requestId", { id: error.requestId })) : "",
        h("button", { type: "button", class: "link", onclick: () => this.chat.again(this.message) }, t("tryAgain")),
      ),
    );
  }
}

function statsText({ model, stats = {}, stopped, finish }) {
  return [
    model,
    stats.tokens !== undefined && t("tokens", { tokens: number(stats.tokens) }),
    stats.rate !== undefined && t("rate", { rate: number(stats.rate, stats.rate < 100 ? 1 : 0) }),
    stats.ttft !== undefined && t("firstToken", { time: seconds(stats.ttft) }),
    stopped ? t("stopped") : finish === "length" && t("cutShort"),
  ]
    .filter(Boolean)
    .join(" · ");
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
