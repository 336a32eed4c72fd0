/** The ways in: dropped, chosen, recorded, and the samples of the demo. */
import { warn } from "./announce.js";
import { droppedFiles } from "./dropped.js";
import { find, icon } from "./dom.js";
import { say, text } from "./language.js";
import { MicrophoneError, Recorder } from "./recorder.js";
import { clock } from "./time.js";

/** `take(files)` is called with each catch. */
export function startIntake(take) {
  takeDrops(take);
  takeChosen(take);
  takeRecordings(take);
  takeSamples(take);
}

/** Anywhere on the page: a file that misses the mark would otherwise replace the page. */
function takeDrops(take) {
  const zone = find("#drop");
  let depth = 0; // the pointer enters a child before it leaves its parent
  const show = (entered) => {
    depth = Math.max(0, entered);
    zone.classList.toggle("over", depth > 0);
    say(find("#drop-title"), depth > 0 ? "drop.release" : "drop.title");
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && show(depth + 1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && show(depth - 1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(0);
    const lost = [];
    const files = await droppedFiles(event.dataTransfer, (name) => lost.push(name));
    take(files);
    const problem = lost.length ? "drop.lost" : files.length ? null : "drop.empty";
    complainOf("#drop-problem", problem, { names: lost.join(", ") });
  });
}

function hasFiles({ dataTransfer }) {
  return dataTransfer?.types.includes("Files") ?? false;
}

function takeChosen(take) {
  const input = find("#files");
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
}

function takeRecordings(take) {
  const [button, caption] = [find("#record"), find("#record-caption")];
  const showTime = (seconds) => say(caption, "record.stop", { time: clock(seconds) });
  const recorder = new Recorder(showTime, () => press());
  let number = 0;

  const act = async () => {
    if (recorder.isRecording) {
      number += 1;
      const file = recorder.stop(text("record.name", { number }));
      showRecording(false);
      take([await file]);
    } else {
      await recorder.start();
      showRecording(true);
    }
  };
  const showRecording = (isOn) => {
    button.classList.toggle("recording", isOn);
    button.querySelector(".icon").replaceWith(icon(isOn ? "stop" : "microphone"));
    if (!isOn) say(caption, "record.start");
  };
  const press = async () => {
    const hasFocus = document.activeElement === button; // which it loses while it is disabled
    complain(null);
    button.disabled = true; // until the browser has asked, or the recording is whole
    try {
      await act().catch(complain);
    } finally {
      button.disabled = false;
      if (hasFocus) button.focus();
    }
  };
  button.addEventListener("click", press);
}

function complain(error) {
  if (error !== null && !(error instanceof MicrophoneError)) throw error;
  complainOf("#record-problem", error?.reason ?? null, { reason: error?.details });
}

/** `key` of a text, or null where there is nothing to complain of any more. */
function complainOf(selector, key, values) {
  const place = find(selector);
  place.hidden = key === null;
  if (key === null) return;
  say(place, key, values);
  warn(place.textContent);
}

function takeSamples(take) {
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", async () => {
      const name = button.dataset.sample;
      const answer = await fetch(`page/samples/${name}`);
      take([new File([await answer.blob()], name, { type: "audio/wav" })]);
    });
  }
}
