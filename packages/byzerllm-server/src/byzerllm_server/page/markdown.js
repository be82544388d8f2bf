// Markdown as models write it, shown as elements: headings, lists, tables, quotes, code, links.
// Raw HTML in it is shown as the text that it is. Source of the syntax: CommonMark 0.31, and
// GitHub's tables, task lists and strikethrough.

import { copyButton, h } from "./dom.js";
import { highlight } from "./highlight.js";
import { t } from "./texts.js";

const DEEPEST = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)(.*)$/;
const DELIMITER = /^:?-+:?$/;
const BLANK = /^\s*$/;

/**
 * Shows a text that grows. Finished blocks are rendered once and stay; what is drawn again is the
 * last block.
 */
export class MarkdownView {
  constructor() {
    this.element = h("div", { class: "markdown" });
    this.settled = 0;
    this.tail = [];
    this.openCode = null;
  }

  /** Show `text`, which begins with what was shown before. */
  update(text, finished = false) {
    const lines = text.slice(this.settled).split("\n");
    const blocks = parse(lines, 0);
    if (!blocks.length) return;
    const last = blocks.at(-1);
    const growing = last.kind === "code" && !last.closed && !finished;
    if (growing && this.openCode && blocks.length === 1) {
      this.openCode.textContent = last.text;
      return;
    }
    const elements = blocks.map((block) => blockElement(block, growing && block === last));
    for (const element of this.tail) element.remove();
    this.element.append(...elements);
    const open = finished ? 0 : openBlocks(blocks, lines);
    this.tail = open ? elements.slice(-open) : [];
    this.openCode = growing ? elements.at(-1).querySelector("code") : null;
    const stay = open ? blocks.at(-Math.min(open, blocks.length)).start : lines.length;
    for (let line = 0; line < stay; line += 1) this.settled += lines[line].length + 1;
  }
}

/** How many of the last blocks may still change: a number may yet begin the next item of a list. */
function openBlocks(blocks, lines) {
  const last = blocks.at(-1);
  return last.start === lines.length - 1 && /^ *\d{1,9}[.)]?$/.test(lines.at(-1)) ? 2 : 1;
}

/** A whole text at once. */
export function markdown(text) {
  const view = new MarkdownView();
  view.update(text, true);
  return view.element;
}

// Blocks.

/** The blocks of some lines, each with the number of its first line. */
function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    block.start = at;
    blocks.push(block);
    at = end;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = line.slice(heading[0].length).trim().replace(/(?:^| )#+$/, "");
    return [{ kind: "heading", level: heading[1].length, text: text.trimEnd() }, at + 1];
  }
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at, [opening, marks, language]) {
  const indent = opening.search(/\S/);
  const closing = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const body = lines.slice(at + 1, end);
  const text = (indent ? body.map((line) => line.replace(new RegExp(`^ {0,${indent}}`), "")) : body).join("\n");
  const closed = end < lines.length;
  return [{ kind: "code", language, text, closed }, closed ? end + 1 : end];
}

function quote(lines, at, depth) {
  let end = at;
  const inner = [];
  while (end < lines.length && !BLANK.test(lines[end])) {
    if (!QUOTE.test(lines[end]) && begins(lines, end)) break;
    inner.push(lines[end].replace(QUOTE, ""));
    end += 1;
  }
  return [{ kind: "quote", blocks: parse(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const [, lead, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const same = (line) => {
    const found = ITEM.exec(line);
    return found && found[1].length < lead.length + 2 && kindOf(found[2]) === kindOf(mark) ? found : null;
  };
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const found = same(lines[end]);
    if (!found || RULE.test(lines[end])) break;
    const width = found[1].length + Math.min(found[2].length + 1, 5);
    const inner = [found[3]];
    let blank = false;
    end += 1;
    while (end < lines.length) {
      const line = lines[end];
      if (BLANK.test(line)) {
        blank = true;
        inner.push("");
        end += 1;
        continue;
      }
      const indent = line.search(/\S/);
      if (indent < width && (blank || begins(lines, end) || ITEM.test(line))) {
        // Models often indent what belongs to an item by two blanks, whatever the mark's width.
        if (!(indent >= lead.length + 2 && indent >= 2)) break;
      }
      if (blank) loose = loose || !ITEM.test(line);
      blank = false;
      inner.push(line.slice(Math.min(indent, width)));
      end += 1;
    }
    if (blank && end < lines.length && same(lines[end])) loose = true;
    items.push(parse(inner, depth + 1));
    items.at(-1).task = /^\[([ xX])\] /.exec(found[3])?.[1];
  }
  return [{ kind: "list", ordered, first: ordered ? Number.parseInt(mark, 10) : 1, items, loose }, end];
}

function kindOf(mark) {
  return /\d/.test(mark) ? mark.at(-1) : mark;
}

function isTable(lines, at) {
  const next = lines[at + 1];
  return (
    next !== undefined &&
    lines[at].includes("|") &&
    next.includes("-") &&
    cells(next).every((cell) => DELIMITER.test(cell)) &&
    cells(lines[at]).length === cells(next).length
  );
}

function table(lines, at) {
  const aligns = cells(lines[at + 1]).map((cell) => {
    if (cell.startsWith(":") && cell.endsWith(":")) return "center";
    return cell.endsWith(":") ? "right" : "";
  });
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !BLANK.test(lines[end])) end += 1;
  return [{ kind: "table", aligns, head: cells(lines[at]), rows: lines.slice(at + 2, end).map(cells) }, end];
}

/** A row's cells; `\|` and a bar in code are part of a cell. */
function cells(line) {
  const found = [];
  let cell = "";
  let code = false;
  const row = line.trim().replace(/^\|/, "");
  for (let i = 0; i < row.length; i += 1) {
    const sign = row[i];
    if (sign === "\\" && row[i + 1] === "|") {
      cell += "|";
      i += 1;
    } else if (sign === "|" && !code) {
      found.push(cell.trim());
      cell = "";
    } else {
      if (sign === "`" && (code || row.includes("`", i + 1))) code = !code;
      cell += sign;
    }
  }
  if (cell.trim()) found.push(cell.trim());
  return found;
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && !BLANK.test(lines[end])) {
    if (begins(lines, end) && depth < DEEPEST) break;
    end += 1;
  }
  const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n");
  return [{ kind: "paragraph", text: text.trimEnd() }, end];
}

/** Whether a line ends the paragraph before it. */
function begins(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  if (item && item[3] && (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) <= 1)) return true;
  return isTable(lines, at);
}

// Elements.

function blockElement(block, growing = false) {
  switch (block.kind) {
    case "heading":
      // The page has its own first and second level.
      return h(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, inline(block.text));
    case "rule":
      return h("hr");
    case "code":
      return codeElement(block, growing);
    case "quote":
      return h("blockquote", null, block.blocks.map((inner) => blockElement(inner)));
    case "list":
      return listElement(block);
    case "table":
      return tableElement(block);
    default:
      return h("p", null, inline(block.text));
  }
}

function codeElement({ language, text }, growing) {
  const code = h("code");
  if (growing) code.textContent = text;
  else highlight(code, text, language);
  return codeBlock(code, language);
}

function codeBlock(code, label) {
  return h(
    "div",
    { class: "code" },
    h("div", { class: "code-head" }, h("span", null, label), copyButton(() => code.textContent, t("copyCode"), t("copied"))),
    h("pre", { tabindex: "0" }, code),
  );
}

/** Code with its head and colours, outside of any text. */
export function codeBox(text, language, label = language) {
  const code = h("code");
  highlight(code, text, language);
  return codeBlock(code, label);
}

function listElement({ ordered, first, items, loose }) {
  const shown = items.map((blocks) => {
    const children = blocks.map((block, index) => {
      if (block.kind !== "paragraph") return blockElement(block);
      const text = blocks.task && index === 0 ? block.text.slice(4) : block.text;
      return loose ? h("p", null, inline(text)) : h("span", null, inline(text));
    });
    if (!blocks.task) return h("li", null, children);
    const done = blocks.task !== " ";
    return h("li", { class: "task" }, h("input", { type: "checkbox", disabled: true, checked: done, "aria-label": done ? "✓" : "–" }), children);
  });
  return ordered ? h("ol", first === 1 ? null : { start: first }, shown) : h("ul", null, shown);
}

function tableElement({ aligns, head, rows }) {
  const cell = (tag, text, index) => h(tag, aligns[index] ? { class: aligns[index] } : null, inline(text));
  return h(
    "div",
    { class: "table", tabindex: "0" },
    h(
      "table",
      null,
      h("thead", null, h("tr", null, head.map((text, index) => cell("th", text, index)))),
      h("tbody", null, rows.map((row) => h("tr", null, aligns.map((_, index) => cell("td", row[index] || "", index))))),
    ),
  );
}

// Inline.

const SPECIAL = /[\\`*_~![<\n]|https?:\/\//g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ADDRESS = /https?:\/\/[^\s<>"'`\u3000-\u303f\uff00-\uffef]+/y;
const ANGLED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const INLINE_DEEPEST = 8;

function inline(text, depth = 0) {
  const nodes = [];
  // What was looked for to the end of the text and is not there.
  const missing = new Set();
  let plain = "";
  let at = 0;
  const put = (node) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    if (!special) break;
    plain += text.slice(at, special.index);
    at = special.index;
    const found = inlineAt(text, at, depth, missing);
    if (!found) {
      plain += special[0];
      at += special[0].length;
    } else if (typeof found[0] === "string") {
      plain += found[0];
      at = found[1];
    } else {
      put(found[0]);
      at = found[1];
    }
  }
  plain += text.slice(at);
  if (plain) nodes.push(plain);
  return nodes;
}

/** What stands at a special sign: [node or text, end], or nothing. */
function inlineAt(text, at, depth, missing) {
  switch (text[at]) {
    case "\\":
      if (text[at + 1] === "\n") return [h("br"), at + 2];
      return at + 1 < text.length && ESCAPABLE.test(text[at + 1]) ? [text[at + 1], at + 2] : null;
    case "\n":
      return [h("br"), at + 1];
    case "`":
      return codeSpan(text, at, missing);
    case "*":
    case "_":
    case "~":
      return depth < INLINE_DEEPEST ? emphasis(text, at, depth, missing) : null;
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, depth, missing) : null;
    case "[":
      return link(text, at, depth, missing);
    case "<":
      return angled(text, at);
    default:
      return bare(text, at);
  }
}

function codeSpan(text, at, missing) {
  const marks = /`+/y;
  marks.lastIndex = at;
  const fence = marks.exec(text)[0];
  const from = at + fence.length;
  if (missing.has(fence)) return [fence, from];
  let end = text.indexOf(fence, from);
  while (end >= 0 && (text[end + fence.length] === "`" || text[end - 1] === "`")) {
    let past = end + fence.length;
    while (text[past] === "`") past += 1;
    end = text.indexOf(fence, past);
  }
  if (end < 0) {
    missing.add(fence);
    return [fence, from];
  }
  const inner = text.slice(from, end).replaceAll("\n", " ");
  const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
  return [h("code", null, padded ? inner.slice(1, -1) : inner), end + fence.length];
}

function emphasis(text, at, depth, missing) {
  const sign = text[at];
  let run = 1;
  while (text[at + run] === sign) run += 1;
  if (sign === "~" && run !== 2) return [sign.repeat(run), at + run];
  const width = Math.min(run, 3);
  const mark = sign.repeat(width);
  const from = at + run;
  const opens = from < text.length && !/\s/.test(text[from]) && !(sign === "_" && isWord(text[at - 1]));
  if (run > 3 || !opens || missing.has(mark)) return [sign.repeat(run), from];
  const end = closer(text, from, mark);
  if (end < 0) {
    missing.add(mark);
    return [sign.repeat(run), from];
  }
  const inner = inline(text.slice(from, end), depth + 1);
  const tags = { "~": ["del"], 1: ["em"], 2: ["strong"], 3: ["strong", "em"] }[sign === "~" ? "~" : width];
  const node = tags.reduceRight((children, tag) => [h(tag, null, children)], inner)[0];
  return [node, end + width];
}

/** Where the text that `mark` opened ends; -1 where it does not. */
function closer(text, from, mark) {
  const sign = mark[0];
  for (let at = text.indexOf(sign, from); at >= 0; at = text.indexOf(sign, at)) {
    let run = 1;
    while (text[at + run] === sign) run += 1;
    const closes = !/\s/.test(text[at - 1]) && text[at - 1] !== "\\" && !(sign === "_" && isWord(text[at + run]));
    // `**a *b***`: the inner one closes first.
    if (closes && run === mark.length) return at;
    if (closes && run > mark.length && (mark.length > 1 || run === 3)) return at + run - mark.length;
    at += run;
  }
  return -1;
}

function isWord(sign) {
  return sign !== undefined && /[\p{L}\p{N}_]/u.test(sign);
}

function link(text, at, depth, missing) {
  if (missing.has("](")) return null;
  if (text.indexOf("](", at) < 0) {
    missing.add("](");
    return null;
  }
  const close = bracket(text, at);
  if (close < 0 || text[close + 1] !== "(") return null;
  const target = /\(\s*(<[^<>\n]*>|(?:[^\s()\\]|\\.|\([^\s()]*\))*)(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\s*\)/y;
  target.lastIndex = close + 1;
  const found = target.exec(text);
  if (!found) return null;
  const label = text.slice(at + 1, close);
  const url = safeAddress(found[1].replace(/^<|>$/g, ""));
  const shown = depth < INLINE_DEEPEST ? inline(label, depth + 1) : [label];
  const end = close + 1 + found[0].length;
  // An address that is not safe to follow is shown as what was written.
  if (!url) return [h("span", { class: "unsafe" }, shown, ` (${found[1]})`), end];
  return [anchor(url, shown.length ? shown : [url]), end];
}

/** The bracket that closes the one at `at`, within a sensible distance. */
function bracket(text, at) {
  let open = 0;
  for (let i = at; i < Math.min(text.length, at + 1000); i += 1) {
    if (text[i] === "\\") i += 1;
    else if (text[i] === "[") open += 1;
    else if (text[i] === "]" && (open -= 1) === 0) return i;
  }
  return -1;
}

function angled(text, at) {
  ANGLED.lastIndex = at;
  const found = ANGLED.exec(text);
  const url = found && safeAddress(found[1]);
  return url ? [anchor(url, [found[1]]), at + found[0].length] : null;
}

function bare(text, at) {
  ADDRESS.lastIndex = at;
  const found = ADDRESS.exec(text);
  if (!found) return null;
  let address = found[0];
  while (/[.,;:!?*_~]$/.test(address)) address = address.slice(0, -1);
  while (address.endsWith(")") && address.split(")").length > address.split("(").length) address = address.slice(0, -1);
  const url = safeAddress(address);
  return url ? [anchor(url, [address]), at + address.length] : null;
}

/** The address where following it can only open a page or a mail; else nothing. */
function safeAddress(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}

function anchor(url, children) {
  return h("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}
