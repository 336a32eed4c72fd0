/** How far a file is, and what has been heard of it so far. */
import { announce } from "./announce.js";
import { element } from "./dom.js";
import { label, say, text } from "./language.js";

const UPLOAD_SHARE = 0.25; // of the bar: recognition takes longer than most uploads
const ANNOUNCED_PERCENT = 25;

export class Progress {
  #name;
  #announced = 0;
  #bar = element("progress", { max: "1", value: "0" });
  #state = element("p", { class: "state" });
  #partial = element("p", { class: "partial", "aria-hidden": "true" });

  constructor(name) {
    this.#name = name;
    this.root = element("div", { class: "progress" }, this.#bar, this.#state, this.#partial);
    label(this.#bar, "card.progress", { name });
  }

  /** A text of the page, and how full the bar is; at 0 what was heard before is forgotten. */
  show(key, value, percent = 0) {
    say(this.#state, key, { percent });
    this.#bar.value = value;
    if (value === 0) this.#partial.textContent = "";
    if (value === 0) this.#announced = 0;
  }

  uploaded(fraction) {
    const key = fraction < 1 ? "state.uploading" : "state.waiting";
    this.show(key, UPLOAD_SHARE * fraction, Math.floor(fraction * 100));
  }

  recognised(fraction, newText) {
    const percent = Math.floor(fraction * 100);
    this.show("state.recognising", UPLOAD_SHARE + (1 - UPLOAD_SHARE) * fraction, percent);
    this.#partial.append(newText);
    this.#partial.scrollTop = this.#partial.scrollHeight;
    if (percent < this.#announced + ANNOUNCED_PERCENT || percent === 100) return;
    this.#announced = percent;
    announce(text("live.percent", { name: this.#name, percent }));
  }
}
