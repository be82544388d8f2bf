// Calls this server, with the key, and reads its event streams.

import { loadKey } from "./store.js";

/** The address of the server, also where it stands behind a prefix. */
export const ADDRESS = new URL(".", document.baseURI).href;

/** A request that failed. `status` is 0 where the server was not reached. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", requestId = "", parameter = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, parameter });
  }

  /** What is kept of it in the conversation. */
  get plain() {
    const { message, status, code, requestId, parameter } = this;
    return { message, status, code, requestId, parameter };
  }
}

async function request(path, { body, signal } = {}) {
  const headers = {};
  const key = loadKey();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, ADDRESS), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("", { code: "unreachable" });
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  const requestId = response.headers.get("x-request-id") || "";
  const text = await response.text().catch(() => "");
  try {
    const { message, code, param } = JSON.parse(text).error;
    return new ApiError(message, { status: response.status, code, requestId, parameter: param || "" });
  } catch {
    return new ApiError(text.slice(0, 300) || response.statusText, { status: response.status, requestId });
  }
}

/** The JSON at a path. */
export async function get(path, signal) {
  return (await request(path, { signal })).json();
}

/**
 * Stream a chat. `onChunk` gets each chunk as the API sends it.
 * Resolves with the request's id; rejects with ApiError, or AbortError when `signal` says so.
 */
export async function streamChat(body, signal, onChunk) {
  const response = await request("v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  });
  const requestId = response.headers.get("x-request-id") || "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") {
          ended = true;
          continue;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) {
          const { message, code, param } = chunk.error;
          throw new ApiError(message, { status: response.status, code, requestId, parameter: param || "" });
        }
        onChunk(chunk);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("", { code: "interrupted", requestId });
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!ended) throw new ApiError("", { code: "interrupted", requestId });
  return requestId;
}
