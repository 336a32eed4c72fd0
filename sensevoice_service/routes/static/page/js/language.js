/** The language of the page itself: texts by key, told anew when it changes. */
import { keep, recall } from "./keep.js";
import { TEXTS } from "./texts.js";

const KEPT_AS = "language";
const told = new WeakMap(); // element → { text, label, readers }: the values within them
let current = "en";

export function text(key, values = {}) {
  const template = TEXTS[current][key];
  if (template === undefined) throw new Error(`no text ${key} in ${current}`);
  return template.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

export function isText(key) {
  return key in TEXTS[current];
}

/** Make a text the content of an element, in this language and, after a switch, in the other. */
export function say(element, key, values = {}) {
  element.dataset.text = key;
  remember(element, "text", values);
  element.textContent = text(key, values);
  return element;
}

/** The same for what a screen reader calls the element. */
export function labelForReaders(element, key, values = {}) {
  element.dataset.readers = key;
  remember(element, "readers", values);
  element.setAttribute("aria-label", text(key, values));
  return element;
}

/** That, and a hint on hovering. */
export function label(element, key, values = {}) {
  element.dataset.label = key;
  remember(element, "label", values);
  const name = text(key, values);
  element.setAttribute("aria-label", name);
  element.title = name;
  return element;
}

export function language() {
  return current;
}

export function startLanguage() {
  const kept = recall(KEPT_AS);
  show(kept in TEXTS ? kept : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
}

export function setLanguage(name) {
  keep(KEPT_AS, name);
  show(name);
}

function show(name) {
  current = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  document.title = text("page.title");
  for (const [what, tell] of Object.entries({ text: say, label, readers: labelForReaders })) {
    for (const element of document.querySelectorAll(`[data-${what}]`)) {
      tell(element, element.dataset[what], told.get(element)?.[what]);
    }
  }
  for (const element of document.querySelectorAll("[data-hint]")) {
    element.placeholder = text(element.dataset.hint);
  }
}

function remember(element, what, values) {
  told.set(element, { ...told.get(element), [what]: values });
}
