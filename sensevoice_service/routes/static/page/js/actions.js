/** What can be done with a transcript: copy it, keep it as a file, have it made anew. */
import { announce } from "./announce.js";
import { copy } from "./copy.js";
import { element, icon } from "./dom.js";
import { label, say, text } from "./language.js";
import { FORMATS, save } from "./save.js";

const COPIED_SHOWN_MS = 2000;

export class Actions {
  #detail;
  #copied = element("span");

  constructor(detail, name, rules, again) {
    this.#detail = detail;
    const copying = element("button", { type: "button" }, icon("copy"), this.#copied);
    copying.addEventListener("click", () => this.#copy());
    say(this.#copied, "action.copy");
    const saving = element("div", { class: "save" }, say(element("span"), "action.save"));
    for (const format of Object.keys(FORMATS)) {
      const button = element("button", { type: "button", "data-format": format });
      button.textContent = format.toUpperCase();
      label(button, "action.save.as", { name, format: format.toUpperCase() });
      button.addEventListener("click", () => save(detail, name, format, rules));
      saving.append(button);
    }
    const repeat = element("button", { class: "quiet", type: "button", onclick: again });
    label(repeat, "action.again");
    repeat.append(icon("again"));
    this.root = element("footer", { class: "actions" }, copying, saving, repeat);
  }

  async #copy() {
    const isDone = await copy(this.#detail.text);
    announce(text(isDone ? "live.copied" : "live.copyFailed"));
    if (!isDone) return;
    say(this.#copied, "action.copied");
    setTimeout(() => say(this.#copied, "action.copy"), COPIED_SHOWN_MS);
  }
}
