/** One file on its way to a transcript, as a card of the page. */
import { announce, warn } from "./announce.js";
import { Actions } from "./actions.js";
import { badges } from "./badges.js";
import { element, icon } from "./dom.js";
import { Failure, cutOff } from "./failure.js";
import { apiKey, askForKey } from "./key.js";
import { label, say, text } from "./language.js";
import { peaksOfSound, peaksOfWords } from "./peaks.js";
import { Player } from "./player.js";
import { Progress } from "./progress.js";
import { clock } from "./time.js";
import { transcribe } from "./transcribe.js";
import { Transcript } from "./transcript.js";
import { wordsOf } from "./words.js";

const UNAUTHORIZED = 401;
const ANNOUNCED_CHARACTERS = 200; // the transcript itself is there to be read

export class Card {
  #file;
  #page;
  #fields;
  #leaving = new AbortController();
  #player;
  #progress;
  #needsPeaks = false;
  #detail = null;
  #shown = new AbortController(); // ends with the transcript that is shown
  #tags = element("ul", { class: "badges" });
  #length = element("span", { class: "length" });
  #body = element("div", { class: "body" });

  /**
   * `page` has `fields()`, the options of the form; `enqueue(job)`; `rules` of subtitles;
   * `maxBytes` of an upload; and `removed(neighbour)`.
   */
  constructor(file, page) {
    this.#file = file;
    this.#page = page;
    this.#player = new Player(file, file.name);
    this.#progress = new Progress(file.name);
    this.root = element("li", { class: "card", tabindex: "-1" });
    this.root.append(this.#header(), this.#player.root, this.#body);
    this.#player.addEventListener("duration", () => this.#draw(), { once: true });
    this.#player.addEventListener("unplayable", () => this.#sayUnplayable(), { once: true });
  }

  /** Put it in the line, with the options as they are now. */
  start() {
    this.#fields = this.#page.fields();
    this.#progress.show("state.queued", 0);
    this.root.dataset.state = "queued";
    this.#tags.replaceChildren();
    this.#fill(this.#progress.root);
    this.#page.enqueue(() => this.#run());
  }

  #header() {
    const { name } = this.#file;
    const remove = element("button", { class: "quiet", type: "button" }, icon("close"));
    label(remove, "card.remove", { name });
    remove.addEventListener("click", () => this.#remove());
    const title = element("h3", { title: name }, name);
    return element("header", {}, title, this.#length, this.#tags, remove);
  }

  async #run() {
    const { signal } = this.#leaving;
    if (signal.aborted) return;
    const key = apiKey();
    this.root.dataset.state = "working";
    announce(text("live.started", { name: this.#file.name }));
    try {
      this.#requireRoom();
      const listener = this.#progress;
      this.#show(await transcribe(this.#file, this.#fields, key, listener, signal));
    } catch (error) {
      if (!signal.aborted) this.#fail(error, key);
    }
  }

  /** Before an upload that would be refused at its end. */
  #requireRoom() {
    const { maxBytes } = this.#page;
    if (this.#file.size <= maxBytes) return;
    const message = `> ${maxBytes / 2 ** 20} MiB`;
    throw new Failure({ status: 413, code: "upload_too_large", message });
  }

  #show(detail) {
    this.#detail = detail;
    this.root.dataset.state = "done";
    this.#tags.replaceChildren(...badges(detail));
    this.#showLength(detail.duration_s);
    if (this.#needsPeaks) this.#drawWords();
    const { name } = this.#file;
    const player = this.#player.isPlayable ? this.#player : null;
    this.#shown.abort();
    this.#shown = new AbortController();
    this.#fill(
      new Transcript(detail, name, player, this.#shown.signal).root,
      new Actions(detail, name, this.#page.rules, () => this.start()).root,
    );
    announce(text("live.done", { name, text: detail.text.slice(0, ANNOUNCED_CHARACTERS) }));
  }

  #fail(error, key) {
    // Anything else is a slip of this page: it shall be seen in the console.
    const failure = error instanceof Failure ? error : cutOff();
    if (failure !== error) console.error(error);
    this.root.dataset.state = "failed";
    const title = say(element("strong"), failure.key);
    const message = element("p", { class: "message" }, failure.message);
    const advice = say(element("p"), `${failure.key}.do`, failure.values);
    const shown = element("div", { class: "failure" }, icon("alert"), title, message, advice);
    if (failure.isWorthAnotherTry) shown.append(this.#retry());
    this.#fill(shown);
    warn([this.#file.name, title, message, advice].map((one) => one.textContent ?? one).join(". "));
    if (failure.status === UNAUTHORIZED) this.#askForKey(key);
  }

  /** The button that was pressed may go with what was there: the focus stays with the card. */
  #fill(...contents) {
    const hasFocus = this.#body.contains(document.activeElement);
    this.#body.replaceChildren(...contents);
    if (hasFocus) this.root.focus({ preventScroll: true });
  }

  async #askForKey(failed) {
    if (await askForKey(failed)) this.start();
  }

  #retry() {
    const button = element("button", { type: "button", onclick: () => this.start() });
    return say(button, "action.retry");
  }

  async #draw() {
    this.#showLength(this.#player.durationS);
    const found = await peaksOfSound(this.#file, this.#player.durationS);
    if (this.#leaving.signal.aborted) return;
    if (found) this.#player.draw(found);
    else if (this.#detail) this.#drawWords();
    else this.#needsPeaks = true;
  }

  #drawWords() {
    const words = this.#detail.segments.flatMap(wordsOf);
    this.#player.draw(peaksOfWords(words, this.#detail.duration_s));
  }

  #showLength(durationS) {
    if (durationS) this.#length.textContent = clock(Math.round(durationS));
  }

  #sayUnplayable() {
    const note = say(element("p", { class: "note" }), "player.unplayable");
    this.#player.root.after(note);
  }

  #remove() {
    this.#leaving.abort();
    this.#player.destroy();
    const neighbour = this.root.nextElementSibling ?? this.root.previousElementSibling;
    this.root.remove();
    this.#page.removed(neighbour);
  }
}
