// What the page says, in English and Chinese.

import { load, save } from "./store.js";

const TEXTS = {
  "tab.chat": ["Chat", "对话"],
  "tab.models": ["Models", "模型"],
  "tab.call": ["Call", "调用"],
  views: ["Views", "视图"],
  otherLanguage: ["中文", "English"],
  toDark: ["Dark theme", "深色主题"],
  toLight: ["Light theme", "浅色主题"],
  close: ["Close", "关闭"],
  cancel: ["Cancel", "取消"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  copyCode: ["Copy code", "复制代码"],
  tryAgain: ["Try again", "重试"],

  pick: ["Choose a model", "选择模型"],
  filter: ["Type to filter", "输入以筛选"],
  chosen: ["Model: {model}", "模型：{model}"],
  noMatch: ["No model has this name", "没有匹配的模型"],
  noModels: ["No model is served yet", "尚无可用模型"],

  keyTitle: ["API key", "API 密钥"],
  keyWhy: ["This server answers only to those who have a key. It is kept in this tab until you close it, and sent nowhere but to this server.", "此服务器需要密钥。密钥仅保存在当前标签页，关闭后即清除，且只会发送给本服务器。"],
  keyLabel: ["Key", "密钥"],
  keyRefused: ["The server does not take the key that was given.", "服务器不接受之前的密钥。"],
  keyNeeded: ["The server asks for an API key", "服务器需要 API 密钥"],
  useKey: ["Use key", "使用密钥"],
  forgetKey: ["Forget key", "清除密钥"],
  giveKey: ["Give an API key", "输入 API 密钥"],
  changeKey: ["Change the API key", "更换 API 密钥"],

  conversation: ["Conversation", "对话内容"],
  welcome: ["What shall we talk about?", "想聊点什么？"],
  welcomeModel: ["You talk to {model}. The conversation stays in this browser.", "当前模型：{model}。对话内容仅保存在此浏览器中。"],
  welcomeNoModel: ["No model is chosen yet.", "尚未选择模型。"],
  hintOne: ["Explain how a vector index works, in three sentences.", "用三句话解释向量索引的工作原理。"],
  hintTwo: ["Write a Python function that merges two sorted lists.", "写一个合并两个有序列表的 Python 函数。"],
  hintThree: ["Compare TCP and UDP in a table.", "用表格比较 TCP 和 UDP。"],
  placeholder: ["Ask something", "请输入问题"],
  keys: ["Enter sends · Shift+Enter new line", "Enter 发送 · Shift+Enter 换行"],
  send: ["Send", "发送"],
  stop: ["Stop (Esc)", "停止 (Esc)"],
  attach: ["Attach images", "添加图片"],
  image: ["Image {number}", "图片 {number}"],
  removeImage: ["Remove image {number}", "移除图片 {number}"],
  noImage: ["{name} is no image that this browser can read", "浏览器无法读取图片 {name}"],
  clear: ["Clear the conversation", "清空对话"],
  cleared: ["The conversation is cleared", "对话已清空"],
  undo: ["Undo", "撤销"],
  notKept: ["This browser has no room for the images: they are gone after a reload", "浏览器存储空间不足：刷新后图片将丢失"],
  you: ["You", "你"],
  edit: ["Edit", "编辑"],
  resend: ["Send again", "重新发送"],
  again: ["Answer again", "重新生成"],
  answering: ["The model is answering", "模型正在回答"],
  answered: ["Answer:", "回答："],
  failed: ["It failed: {message}", "失败：{message}"],
  stopped: ["stopped", "已停止"],
  cutShort: ["cut at the longest length", "达到长度上限"],
  thinking: ["Thinking…", "思考中…"],
  thought: ["Reasoning", "思考过程"],
  tokens: ["{tokens} tokens", "{tokens} 个 token"],
  rate: ["{rate} tokens/s", "{rate} token/秒"],
  firstToken: ["first after {time}", "首 token {time}"],
  requestId: ["request {id}", "请求 {id}"],
  arguments: ["arguments", "参数"],
  result: ["result", "结果"],
  giveResult: ["Result of the call", "调用结果"],
  resultHint: ["What the tool answers, as text or JSON", "工具返回的内容，文本或 JSON"],
  sendResults: ["Go on with it", "继续"],

  settings: ["Settings", "设置"],
  "set.system": ["System prompt", "系统提示词"],
  "set.temperature": ["Temperature", "温度"],
  "set.top_p": ["Top p", "Top p"],
  "set.max_tokens": ["Most tokens", "最大 token 数"],
  "set.seed": ["Seed", "随机种子"],
  "set.stop": ["Stop at", "停止序列"],
  "set.tools": ["Tools", "工具"],
  systemHint: ["How the model shall behave", "设定模型的行为方式"],
  stopHint: ["One text a line; \\n for a line break", "每行一个；换行用 \\n"],
  toolsHint: ["A JSON list of functions, as the API takes them", "函数的 JSON 列表，格式与 API 相同"],
  toolsNoJson: ["The tools are no JSON: {reason}", "工具不是有效的 JSON：{reason}"],
  toolsNoList: ["The tools must be a JSON list", "工具必须是 JSON 列表"],
  exampleTool: ["Put an example in", "填入示例"],
  byDefault: ["default", "默认"],
  reset: ["Reset all", "全部重置"],

  models: ["Models", "模型"],
  modelsSummary: ["{models} models, {workers} workers", "{models} 个模型，{workers} 个工作进程"],
  chatWith: ["Chat", "对话"],
  context: ["context {tokens}", "上下文 {tokens}"],
  load: ["{running} of {concurrency} running, {waiting} waiting", "运行 {running}/{concurrency}，排队 {waiting}"],
  tokensPerSecond: ["Tokens/s", "token/秒"],
  ttft: ["First token", "首 token"],
  running: ["Running", "运行中"],
  waiting: ["Waiting", "排队"],
  chartLabel: ["{title}: {now} now, {top} at most in two minutes", "{title}：当前 {now}，两分钟内最高 {top}"],
  counts: ["{done} answered, {failed} failed, {refused} refused", "完成 {done}，失败 {failed}，拒绝 {refused}"],
  workersReady: ["{ready} of {all} workers ready", "{ready}/{all} 个工作进程就绪"],
  worker: ["Worker", "工作进程"],
  stateHead: ["State", "状态"],
  node: ["Node", "节点"],
  memory: ["Memory", "内存"],
  uptime: ["Up for", "运行时间"],
  cooling: ["rests for {seconds} s", "冷却 {seconds} 秒"],
  "state.ready": ["ready", "就绪"],
  "state.starting": ["starting", "启动中"],
  "state.degraded": ["degraded", "降级"],
  "state.draining": ["draining", "排空中"],
  "task.chat": ["chat", "对话"],
  "task.embedding": ["embeddings", "向量"],
  "task.speech": ["speech", "语音合成"],
  "task.transcription": ["transcription", "语音识别"],
  "task.image": ["images", "图像生成"],

  callTitle: ["Call this model", "调用此模型"],
  callIntro: ["{model} at {address}", "{model}，地址 {address}"],
  callKey: ["The examples read your key from the environment:", "示例从环境变量读取密钥："],
  "call.curl": ["curl", "curl"],
  "call.openai": ["OpenAI's Python client", "OpenAI Python 客户端"],
  "call.byzerllm": ["byzerllm, through this address", "byzerllm，通过此地址"],
  "call.cluster": ["byzerllm, on the cluster", "byzerllm，在集群内"],
  callCurl: ["From any shell.", "在任意终端中使用。"],
  callOpenai: ["pip install openai; other clients of this API need the same two values.", "pip install openai；其他兼容客户端也只需这两个值。"],
  callByzerllm: ["pip install 'byzerllm-core[saas]'", "pip install 'byzerllm-core[saas]'"],
  callCluster: ["For programs that run on the Ray cluster itself: one hop, no HTTP.", "适用于运行在 Ray 集群上的程序：一跳直达，无需 HTTP。"],
  callMore: ["All that this server takes:", "完整接口说明："],

  "error.unreachable": ["The server cannot be reached", "无法连接服务器"],
  "error.interrupted": ["The connection broke before the answer was complete", "回答完成前连接中断"],
  "error.status": ["The server answered with status {status}", "服务器返回状态 {status}"],
};

const LANGUAGES = ["en", "zh"];
const preferred = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
let current = LANGUAGES.includes(load("language", "")) ? load("language", "") : preferred;

/** `en` or `zh`. */
export function language() {
  return current;
}

export function setLanguage(name) {
  current = name;
  save("language", name);
}

/** A text with its places filled in; `otherwise` where there is none of this name. */
export function t(name, values = {}, otherwise = name) {
  const texts = Object.hasOwn(TEXTS, name) ? TEXTS[name] : null;
  if (!texts) return otherwise;
  return texts[LANGUAGES.indexOf(current)].replace(/\{(\w+)\}/g, (place, key) => String(values[key] ?? place));
}

/** A number as the language writes it. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(current, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

/** Names that code asks for, for the tests. */
export const NAMES = Object.keys(TEXTS);
