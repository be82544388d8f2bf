// What the browser keeps: choices and the conversation for good, the key until the tab closes.

const PREFIX = "byzerllm.";

/** A kept value, or `otherwise`. */
export function load(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Keep a value; whether there was room for it. */
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** The theme stands unquoted: theme.js reads it, too. */
export function saveTheme(theme) {
  try {
    if (theme) localStorage.setItem(`${PREFIX}theme`, theme);
    else localStorage.removeItem(`${PREFIX}theme`);
  } catch {
    // It holds until the page is left.
  }
}

let unkept = "";

/** The key; never in localStorage. */
export function loadKey() {
  try {
    return sessionStorage.getItem(`${PREFIX}key`) || unkept;
  } catch {
    return unkept;
  }
}

export function saveKey(key) {
  unkept = key;
  try {
    if (key) sessionStorage.setItem(`${PREFIX}key`, key);
    else sessionStorage.removeItem(`${PREFIX}key`);
  } catch {
    // It holds until the page is left.
  }
}
