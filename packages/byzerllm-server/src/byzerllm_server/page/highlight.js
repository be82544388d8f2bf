// Light colours for code: comments, texts, numbers, words of the language.

const LONGEST = 60_000;

const words = (text) => new Set(text.split(" "));
const C_WORDS =
  "abstract as async auto await bool boolean break byte case catch chan char class const continue default defer delete do double " +
  "else enum export extends extern false final finally float fn for from func function go goto if impl implements import in int " +
  "interface instanceof let long loop match mod mut namespace new nil null nullptr of override package private protected pub public " +
  "range return self short signed sizeof static string struct super switch template this throw throws trait true try type typedef " +
  "typeof undefined union unsafe unsigned use using var virtual void volatile where while yield";

const FAMILIES = {
  c: { comment: String.raw`//[^\n]*|/\*[\s\S]*?(?:\*/|$)`, words: words(C_WORDS) },
  python: {
    comment: String.raw`#[^\n]*`,
    text: String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)`,
    words: words(
      "False None True and as assert async await break case class continue def del elif else except finally for from global if " +
        "import in is lambda match nonlocal not or pass raise return self try while with yield",
    ),
  },
  shell: {
    comment: String.raw`(?<=^|\s)#[^\n]*`,
    words: words("case do done elif else esac export fi for function if in local return set then until while sudo cd echo curl pip"),
  },
  sql: {
    comment: String.raw`--[^\n]*|/\*[\s\S]*?(?:\*/|$)`,
    fold: true,
    words: words(
      "all alter and as asc between by case create cross delete desc distinct drop else end exists false from full group having in " +
        "index inner insert into is join key left like limit load not null offset on or order outer primary references right run " +
        "select set table then true union unique update using values view when where with",
    ),
  },
  data: { comment: String.raw`(?<=^|\s)#[^\n]*`, words: words("true false null yes no on off") },
  json: { comment: "(?!)", words: words("true false null") },
  markup: { comment: String.raw`<!--[\s\S]*?(?:-->|$)`, words: new Set(), tags: true },
  css: { comment: String.raw`/\*[\s\S]*?(?:\*/|$)`, words: words("important inherit initial none unset auto var calc") },
};

const LANGUAGES = {
  python: "python py python3 ipython",
  c: "c h cpp c++ cc cs csharp java js javascript jsx ts typescript tsx go golang rust rs kotlin swift scala php dart",
  shell: "sh bash shell zsh console dockerfile make",
  sql: "sql mysql postgresql sqlite byzer",
  data: "yaml yml toml ini conf",
  json: "json jsonc json5",
  markup: "html xml svg vue",
  css: "css scss less",
};

const BY_NAME = new Map();
for (const [family, names] of Object.entries(LANGUAGES)) {
  for (const name of names.split(" ")) BY_NAME.set(name, family);
}

const compiled = new Map();

function pattern(family) {
  if (!compiled.has(family)) {
    const { comment, text, tags } = FAMILIES[family];
    const quoted = [text, String.raw`"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'` + "|`(?:\\\\.|[^`\\\\])*`"];
    const kinds = [
      `(?<comment>${comment})`,
      `(?<text>${quoted.filter(Boolean).join("|")})`,
      tags ? String.raw`(?<tag></?[\w:-]+|/?>)` : "(?<tag>(?!))",
      String.raw`(?<number>\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\b)`,
      String.raw`(?<word>[A-Za-z_$][\w$]*)(?<call>\s*\()?`,
    ];
    compiled.set(family, new RegExp(kinds.join("|"), "gm"));
  }
  return compiled.get(family);
}

/** Fill `element` with `code` in colours; plain where the language is not known. */
export function highlight(element, code, language) {
  const family = BY_NAME.get(language.toLowerCase());
  if (!family || code.length > LONGEST) {
    if (/^(diff|patch)$/i.test(language)) return highlightDiff(element, code);
    element.textContent = code;
    return;
  }
  const { words: known, fold } = FAMILIES[family];
  const pieces = [];
  let end = 0;
  for (const found of code.matchAll(pattern(family))) {
    const { comment, text, tag, number, word, call } = found.groups;
    let kind = "";
    let shown = found[0];
    if (comment) kind = "comment";
    else if (text) kind = "text";
    else if (number) kind = "number";
    else if (tag) kind = "word";
    else {
      shown = word;
      if (known.has(fold ? word.toLowerCase() : word)) kind = "word";
      else if (call) kind = "call";
    }
    if (!kind || !shown) continue;
    if (found.index > end) pieces.push(code.slice(end, found.index));
    const span = document.createElement("span");
    span.className = `tok-${kind}`;
    span.textContent = shown;
    pieces.push(span);
    end = found.index + shown.length;
  }
  pieces.push(code.slice(end));
  element.replaceChildren(...pieces);
}

function highlightDiff(element, code) {
  element.replaceChildren(
    ...code.split(/(?<=\n)/).map((line) => {
      const kind = { "+": "text", "-": "error", "@": "call" }[line[0]];
      if (!kind) return line;
      const span = document.createElement("span");
      span.className = `tok-${kind}`;
      span.textContent = line;
      return span;
    }),
  );
}
