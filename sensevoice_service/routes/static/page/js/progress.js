/** How far a file is, and what has been heard of it so far. */
import { announce } from "./announce.js";
import { element } from "./dom.js";
import { label, say, text } from "./language.js";

const UPLOAD_SHARE = 0.25; // of the bar: recognition takes longer than most uploads
const ANNOUNCED_PERCENT = 25;
const SHOWN_CHARACTERS = 2000; // more than its place shows: each change lays all of it out anew

export class Progress {
  #name;
  #announced = 0;
  #heard = "";
  #isDrawing = false;
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
    if (value > 0) return;
    this.#heard = this.#partial.textContent = "";
    this.#announced = 0;
  }

  uploaded(fraction) {
    const key = fraction < 1 ? "state.uploading" : "state.waiting";
    this.show(key, UPLOAD_SHARE * fraction, Math.floor(fraction * 100));
  }

  recognised(fraction, newText) {
    const percent = Math.floor(fraction * 100);
    this.show("state.recognising", UPLOAD_SHARE + (1 - UPLOAD_SHARE) * fraction, percent);
    this.#heard = (this.#heard + newText).slice(-SHOWN_CHARACTERS);
    this.#drawSoon();
    if (percent < this.#announced + ANNOUNCED_PERCENT || percent === 100) return;
    this.#announced = percent;
    announce(text("live.percent", { name: this.#name, percent }));
  }

  /** Once a frame, however much comes. */
  #drawSoon() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#partial.textContent = this.#heard;
      this.#partial.scrollTop = this.#partial.scrollHeight;
    });
  }
}
