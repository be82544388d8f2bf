// A conversation as plain data: what is kept, and what the API is sent of it.
//
// A message of the user: {id, role: "user", text, images: [data URL]}
// A message of the model: {id, role: "assistant", model, text, reasoning, calls: [{id, name,
// arguments, result}], stats, error, stopped}

import { load, save } from "./store.js";

export class Conversation {
  constructor() {
    this.messages = load("conversation", []);
    this.saving = 0;
    this.next = 1 + Math.max(0, ...this.messages.map((message) => message.id));
    for (const message of this.messages) {
      // The page was left while it was being written.
      if (message.running) Object.assign(message, { running: false, stopped: true });
    }
  }

  ask(text, images) {
    return this.add({ role: "user", text, images });
  }

  answer(model) {
    return this.add({ role: "assistant", model, text: "", reasoning: "", calls: [], running: true });
  }

  add(message) {
    message.id = this.next++;
    this.messages.push(message);
    return message;
  }

  /** Take a message and all after it away; what was taken. */
  cut(message) {
    return this.messages.splice(this.messages.indexOf(message));
  }

  /** Keep it soon; the conversation grows many times a second. */
  saveSoon() {
    this.saving ||= setTimeout(() => this.save(), 1000);
  }

  /** Keep it; whether all of it could be kept. */
  save() {
    clearTimeout(this.saving);
    this.saving = 0;
    if (save("conversation", this.messages)) return true;
    const light = this.messages.map((message) => ({ ...message, images: message.images && [] }));
    save("conversation", light);
    return false;
  }

  /** The messages as the API takes them. */
  sent(system) {
    const sent = system.trim() ? [{ role: "system", content: system }] : [];
    for (const message of this.messages) {
      if (message.role === "user") sent.push({ role: "user", content: contentOf(message) });
      else sent.push(...answered(message));
    }
    return sent;
  }
}

function contentOf({ text, images }) {
  if (!images?.length) return text;
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

/** An answer, and the results of the tools that it called; calls without a result were not made. */
function answered({ text, calls }) {
  const made = calls.filter((call) => call.result !== undefined);
  if (!text && !made.length) return [];
  const message = { role: "assistant", content: text || null };
  if (made.length) {
    message.tool_calls = made.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } }));
  }
  return [message, ...made.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result }))];
}

/** Put a chunk of a stream into the message; whether it brought anything of the answer. */
export function absorb(message, chunk) {
  const delta = chunk.choices?.[0]?.delta || {};
  const finish = chunk.choices?.[0]?.finish_reason;
  if (finish) message.finish = finish;
  if (chunk.usage) message.usage = chunk.usage;
  const reasoning = delta.reasoning_content || delta.reasoning || "";
  message.reasoning += reasoning;
  message.text += delta.content || "";
  for (const piece of delta.tool_calls || []) {
    const call = (message.calls[piece.index] ||= { id: "", name: "", arguments: "" });
    if (piece.id) call.id = piece.id;
    if (piece.function?.name) call.name += piece.function.name;
    if (piece.function?.arguments) call.arguments += piece.function.arguments;
  }
  return Boolean(reasoning || delta.content || delta.tool_calls?.length);
}

/** How fast an answer came; times of `performance.now()`, results in seconds and tokens per second. */
export function statsOf({ usage }, { start, first, last, end }) {
  const stats = { seconds: (end - start) / 1000 };
  if (first) stats.ttft = (first - start) / 1000;
  if (usage) {
    stats.prompt = usage.prompt_tokens;
    stats.tokens = usage.completion_tokens;
    const writing = (last - first) / 1000;
    // An answer in one piece says nothing of the time between its tokens.
    if (writing > 0.05 && stats.tokens > 1) stats.rate = (stats.tokens - 1) / writing;
    else if (first && stats.seconds > 0) stats.rate = stats.tokens / stats.seconds;
  }
  return stats;
}
