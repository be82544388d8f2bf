// How to call the chosen model from elsewhere, with this server's own address.

import { ADDRESS } from "./api.js";
import { h } from "./dom.js";
import { codeBox } from "./markdown.js";
import { loadKey } from "./store.js";
import { t } from "./texts.js";

// A server without keys takes any text for one; clients insist on having one.
const KEY = { shell: "$BYZERLLM_API_KEY", python: 'os.environ["BYZERLLM_API_KEY"]' };
const FREE = { shell: "none", python: '"none"' };

export class CallView {
  constructor() {
    this.element = h("section", { class: "view call", id: "view-call", role: "tabpanel", "aria-labelledby": "tab-call" });
    this.model = "";
    this.task = "";
  }

  render() {
    const title = h("div", { class: "view-head" }, h("h1", null, t("callTitle")));
    if (!this.model) {
      this.element.replaceChildren(title, h("p", { class: "notice" }, t("noModels")));
      return;
    }
    title.append(h("p", { class: "muted" }, t("callIntro", { model: this.model, address: `${ADDRESS}v1` })));
    const key = loadKey() ? KEY : FREE;
    const examples = this.task === "embedding" ? embeddingExamples(this.model, key) : chatExamples(this.model, key);
    this.element.replaceChildren(
      title,
      loadKey() ? h("p", { class: "notice" }, t("callKey"), " ", h("code", null, "export BYZERLLM_API_KEY=…")) : "",
      ...examples.map(([name, note, language, code]) =>
        h("section", { class: "example", "data-example": name }, h("h2", null, t(`call.${name}`)), h("p", { class: "muted" }, t(note)), codeBox(code, language)),
      ),
      h("p", { class: "muted" }, t("callMore"), " ", h("a", { href: new URL("openapi.json", ADDRESS).href }, "openapi.json")),
    );
  }
}

/** Text in quotes of Python and of JSON. */
const quoted = (text) => JSON.stringify(text);

/** Text inside the single quotes of a shell. */
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(path, key, body) {
  const lines = [`curl ${ADDRESS}${path}`, `-H 'content-type: application/json'`];
  if (key === KEY) lines.push(`-H "authorization: Bearer ${KEY.shell}"`);
  return [...lines, `-d ${shell(JSON.stringify(body))}`].join(" \\\n  ");
}

function openai(key, call) {
  const lines = [key === KEY ? "import os\n" : "", "from openai import OpenAI\n"].filter(Boolean);
  return [...lines, `client = OpenAI(base_url=${quoted(`${ADDRESS}v1`)}, api_key=${key.python})`, call].join("\n");
}

function byzerllm(model, key, call) {
  return [
    key === KEY ? "import os\n" : "",
    "from byzerllm import ByzerLLM\n",
    'llm = ByzerLLM(runtime="local")',
    "llm.deploy(",
    '    pretrained_model_type="saas/openai",',
    '    udf_name="remote",',
    "    infer_params={",
    `        "saas.base_url": ${quoted(`${ADDRESS}v1`)},`,
    `        "saas.api_key": ${key.python},`,
    `        "saas.model": ${quoted(model)},`,
    ...(call.task ? [`        "saas.task": ${quoted(call.task)},`] : []),
    "    },",
    ")",
    call.code,
  ]
    .filter(Boolean)
    .join("\n");
}

function chatExamples(model, key) {
  const messages = [{ role: "user", content: "Hello!" }];
  const stream = [
    "chunks = client.chat.completions.create(",
    `    model=${quoted(model)},`,
    '    messages=[{"role": "user", "content": "Hello!"}],',
    "    stream=True,",
    ")",
    "for chunk in chunks:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
  return [
    ["curl", "callCurl", "bash", curl("v1/chat/completions", key, { model, messages })],
    ["openai", "callOpenai", "python", openai(key, stream)],
    ["byzerllm", "callByzerllm", "python", byzerllm(model, key, { code: '\n(answer,) = llm.chat_oai("Hello!", model="remote")\nprint(answer.output)' })],
    ["cluster", "callCluster", "python", cluster(model, `(answer,) = llm.chat_oai("Hello!", model=${quoted(model)})\nprint(answer.output)`)],
  ];
}

function embeddingExamples(model, key) {
  const call = `answer = client.embeddings.create(model=${quoted(model)}, input=["Hello!"])\nprint(answer.data[0].embedding[:4])`;
  const remote = { task: "embedding", code: '\nprint(llm.emb_query("Hello!", model="remote")[0].output[:4])' };
  return [
    ["curl", "callCurl", "bash", curl("v1/embeddings", key, { model, input: ["Hello!"] })],
    ["openai", "callOpenai", "python", openai(key, call)],
    ["byzerllm", "callByzerllm", "python", byzerllm(model, key, remote)],
    ["cluster", "callCluster", "python", cluster(model, `print(llm.emb_query("Hello!", model=${quoted(model)})[0].output[:4])`)],
  ];
}

function cluster(model, call) {
  return ["import byzerllm", "from byzerllm import ByzerLLM\n", 'byzerllm.connect_cluster(address="auto")', "llm = ByzerLLM()\n", call].join("\n");
}
