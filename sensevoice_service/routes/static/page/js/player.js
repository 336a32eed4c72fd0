/** Plays one file, and shows its waveform and where in it the playback is. */
import WaveSurfer from "../vendor/wavesurfer/wavesurfer.esm.js";
import { element, icon } from "./dom.js";
import { label, text } from "./language.js";
import { theme } from "./theme.js";
import { clock } from "./time.js";

const STEP_S = 2;
// The page's policy has the hash of wavesurfer's style sheet, which has this height in it.
const HEIGHT_PX = 64;

export class Player extends EventTarget {
  #file;
  #name;
  #audio = new Audio();
  #wave = null;
  #durationS = 0;
  #frame = 0;
  #button = element("button", { class: "round", type: "button", onclick: () => this.toggle() });
  #waveform = element("div", { class: "waveform", role: "slider", tabindex: "0" });
  #time = element("span", { class: "time", "aria-hidden": "true" });
  #isPlayable = true;
  #recolour = () => this.#wave?.setOptions(this.#colours());

  /** Dispatches `time` while it plays and after each jump, `duration` and `unplayable` once. */
  constructor(file, name) {
    super();
    this.#file = file;
    this.#name = name;
    this.root = element("div", { class: "player" }, this.#button, this.#waveform, this.#time);
    label(this.#waveform, "player.position", { name });
    this.#waveform.addEventListener("keydown", (event) => this.#steer(event));
    theme.addEventListener("change", this.#recolour);
    this.#listen();
    this.#audio.preload = "metadata";
    this.#audio.src = URL.createObjectURL(file);
    this.#showState();
  }

  get timeS() {
    return this.#audio.currentTime;
  }

  get isPlayable() {
    return this.#isPlayable;
  }

  /** False until it is played or moved for the first time, and after a return to the start. */
  get hasBegun() {
    return !this.#audio.paused || this.#audio.currentTime > 0;
  }

  get durationS() {
    return this.#durationS;
  }

  /** Draw the waveform: peaks, and the duration, which a recording's own file may not know. */
  draw({ peaks, durationS }) {
    this.#wave?.destroy();
    this.#durationS = durationS;
    this.#wave = WaveSurfer.create({
      container: this.#waveform,
      media: this.#audio,
      peaks: [peaks],
      duration: durationS,
      height: HEIGHT_PX,
      barWidth: 2,
      barGap: 2,
      barRadius: 2,
      cursorWidth: 2,
      normalize: true,
      dragToSeek: true,
      ...this.#colours(),
    });
    this.#showTime();
  }

  toggle() {
    if (this.#audio.paused) this.play();
    else this.#audio.pause();
  }

  play() {
    // It may be refused, as for a format that the browser does not know: that has an event.
    this.#audio.play().catch(() => {});
  }

  seek(timeS) {
    this.#audio.currentTime = Math.max(0, Math.min(timeS, this.#durationS || timeS));
    this.#showTime();
  }

  destroy() {
    cancelAnimationFrame(this.#frame);
    theme.removeEventListener("change", this.#recolour);
    this.#audio.pause();
    this.#wave?.destroy();
    URL.revokeObjectURL(this.#audio.src);
    this.#audio.removeAttribute("src");
  }

  #listen() {
    const audio = this.#audio;
    for (const name of ["play", "pause", "ended"]) {
      audio.addEventListener(name, () => this.#showState());
    }
    audio.addEventListener("seeked", () => this.#showTime());
    audio.addEventListener("timeupdate", () => this.#showTime());
    audio.addEventListener("loadedmetadata", () => {
      if (Number.isFinite(audio.duration)) this.#durationS ||= audio.duration;
      this.#showTime();
      this.dispatchEvent(new Event("duration"));
    });
    audio.addEventListener("error", () => {
      this.#isPlayable = false;
      this.root.hidden = true;
      this.dispatchEvent(new Event("unplayable"));
    });
  }

  #showState() {
    const { paused } = this.#audio;
    this.#button.replaceChildren(icon(paused ? "play" : "pause"));
    label(this.#button, paused ? "player.play" : "player.pause");
    cancelAnimationFrame(this.#frame);
    if (!paused) this.#follow();
    this.#showTime();
  }

  /** The browser's own `timeupdate` comes four times a second: too seldom for words. */
  #follow() {
    this.#frame = requestAnimationFrame(() => {
      this.#showTime();
      this.#follow();
    });
  }

  #showTime() {
    const values = { time: clock(this.timeS), duration: clock(Math.round(this.#durationS)) };
    this.#time.textContent = `${values.time} / ${values.duration}`;
    this.#waveform.setAttribute("aria-valuemin", "0");
    this.#waveform.setAttribute("aria-valuemax", this.#durationS.toFixed(1));
    this.#waveform.setAttribute("aria-valuenow", this.timeS.toFixed(1));
    this.#waveform.setAttribute("aria-valuetext", text("player.at", values));
    this.dispatchEvent(new Event("time"));
  }

  #steer(event) {
    const jumps = {
      ArrowLeft: () => this.seek(this.timeS - STEP_S),
      ArrowRight: () => this.seek(this.timeS + STEP_S),
      Home: () => this.seek(0),
      End: () => this.seek(this.#durationS),
      Enter: () => this.toggle(),
      " ": () => this.toggle(),
    };
    if (!(event.key in jumps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    jumps[event.key]();
  }

  /** A canvas takes no CSS variable, so the element wears the colours, and they are read off it. */
  #colours() {
    const { color, caretColor } = getComputedStyle(this.#waveform);
    return { waveColor: color, progressColor: caretColor, cursorColor: caretColor };
  }
}
