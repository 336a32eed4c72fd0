/** The words of a file: the one being spoken is marked, a chosen one is played from. */
import { announce } from "./announce.js";
import { badges } from "./badges.js";
import { element } from "./dom.js";
import { label, labelForReaders, say, text } from "./language.js";
import { clock } from "./time.js";
import { wordAt, wordsOf } from "./words.js";

const ROUNDING_S = 0.001; // a browser may come to stand a little before where it was sent

export class Transcript {
  #player;
  #words = [];
  #shown = []; // an element for each word
  #spoken = -1;
  #chosen = -1;

  /** Of a file's `details`, until the `signal`; `player` is null where it cannot be played. */
  constructor(detail, name, player, signal) {
    this.#player = player;
    this.root = element("div", { class: "transcript", role: "group", tabindex: "0" });
    // A title would follow the pointer over the whole text.
    labelForReaders(this.root, "transcript.words", { name });
    for (const segment of detail.segments) this.root.append(this.#segment(segment, detail));
    if (!detail.segments.length) {
      this.root.append(say(element("p", { class: "silence" }), "transcript.silence"));
    }
    this.root.addEventListener("click", (event) => this.#click(event));
    this.root.addEventListener("keydown", (event) => this.#steer(event));
    this.root.addEventListener("blur", () => this.#choose(-1));
    player?.addEventListener("time", () => this.#follow(), { signal });
  }

  #segment(segment, detail) {
    const time = clock(segment.start_s);
    const start = element("button", { class: "from", type: "button" }, time);
    start.addEventListener("click", () => this.#playFrom(segment.start_s));
    start.disabled = !this.#player;
    label(start, "transcript.from", { time });
    const words = wordsOf(segment).map((word) => this.#word(word));
    const spoken = element("p", { lang: segment.language }, ...words);
    const tags = badges(segment, detail);
    const beside = tags.length ? [element("ul", { class: "badges" }, ...tags)] : [];
    return element("div", { class: "segment" }, start, spoken, ...beside);
  }

  #word(word) {
    // The space ahead of a word is no part of what is marked.
    const [, space, spoken] = word.text.match(/^(\s*)(.*)$/s);
    const shown = element("span", { class: "word", "data-index": this.#words.length }, spoken);
    this.#words.push(word);
    this.#shown.push(shown);
    const pair = document.createDocumentFragment();
    pair.append(space, shown);
    return pair;
  }

  #click({ target }) {
    const index = target.closest?.(".word")?.dataset.index;
    const isSelecting = !getSelection().isCollapsed;
    if (index !== undefined && !isSelecting) this.#playFrom(this.#words[index].start_s);
  }

  #playFrom(timeS) {
    this.#player?.seek(timeS);
    this.#player?.play();
  }

  #follow() {
    const timeS = this.#player.timeS + ROUNDING_S;
    const index = wordAt(this.#words, timeS);
    const isOver = index >= 0 && timeS >= this.#words[index].end_s;
    this.#mark(isOver || !this.#player.hasBegun ? -1 : index);
  }

  #mark(index) {
    if (index === this.#spoken) return;
    this.#shown[this.#spoken]?.classList.remove("spoken");
    this.#shown[index]?.classList.add("spoken");
    this.#spoken = index;
    if (index >= 0) this.#keepInView(this.#shown[index]);
  }

  /** Scrolls the transcript alone: the page stays where its reader has put it. */
  #keepInView(word) {
    const [inner, outer] = [word.getBoundingClientRect(), this.root.getBoundingClientRect()];
    const isOut = inner.top < outer.top || inner.bottom > outer.bottom;
    if (isOut) this.root.scrollTop += inner.top - outer.top - this.root.clientHeight / 3;
  }

  #steer(event) {
    if (event.target !== this.root || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.#words.length - 1;
    const moves = {
      ArrowLeft: () => Math.max(0, this.#chosen - 1),
      ArrowRight: () => Math.min(last, this.#chosen + 1),
      Home: () => 0,
      End: () => last,
    };
    if (event.key in moves && last >= 0) this.#choose(moves[event.key]());
    else if (event.key === "Enter" && this.#chosen >= 0) this.#playFrom(this.#chosenStart);
    else return;
    event.preventDefault();
  }

  get #chosenStart() {
    return this.#words[this.#chosen].start_s;
  }

  #choose(index) {
    this.#shown[this.#chosen]?.classList.remove("chosen");
    this.#shown[index]?.classList.add("chosen");
    this.#shown[index]?.scrollIntoView({ block: "nearest" });
    this.#chosen = index;
    const word = this.#words[index];
    if (word) announce(text("live.word", { word: word.text.trim(), time: clock(word.start_s) }));
  }
}
