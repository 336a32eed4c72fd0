/** The API key, which the page asks for once the service wants one. */
import { find } from "./dom.js";
import { text } from "./language.js";

const KEPT_AS = "sensevoice-key";
let inMemory = "";
let question = null; // files that fail side by side share one question

export function apiKey() {
  try {
    return sessionStorage.getItem(KEPT_AS) ?? inMemory;
  } catch {
    return inMemory;
  }
}

/** Whether a key was given that is another than the one that failed. */
export function askForKey(failed) {
  if (apiKey() !== failed) return Promise.resolve(true);
  question ??= ask(failed !== "").finally(() => (question = null));
  return question;
}

function ask(wasRefused) {
  const dialog = find("#key-dialog");
  const input = find("#key-input");
  input.value = "";
  input.title = text("key.rule"); // the page's language stays while the dialog is open
  find("#key-refused").hidden = !wasRefused;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "save" ? input.value.trim() : "";
        if (given) keepForSession(given);
        input.value = "";
        resolve(given !== "");
      },
      { once: true },
    );
  });
}

function keepForSession(key) {
  inMemory = key;
  try {
    sessionStorage.setItem(KEPT_AS, key);
  } catch {
    // It lasts as long as the page then.
  }
}
