/** A transcript as a file to keep. */
import { cues } from "./cues.js";
import { element } from "./dom.js";

/** What the bytes are, and how they are made of a file's `details` by the service's `rules`. */
export const FORMATS = {
  txt: { type: "text/plain", make: (detail) => `${detail.text}\n` },
  srt: { type: "application/x-subrip", make: (detail, rules) => srt(cues(detail, rules)) },
  vtt: { type: "text/vtt", make: (detail, rules) => vtt(cues(detail, rules)) },
  json: { type: "application/json", make: (detail) => `${JSON.stringify(detail, null, 2)}\n` },
};

export function save(detail, name, format, rules) {
  const { type, make } = FORMATS[format];
  const url = URL.createObjectURL(new Blob([make(detail, rules)], { type }));
  const stem = name.replace(/\.[^.]+$/, "") || name;
  element("a", { href: url, download: `${stem}.${format}` }).click();
  // The browser has taken hold of the bytes once it comes to its next task.
  setTimeout(() => URL.revokeObjectURL(url));
}

/** SubRip has no escapes: an arrow in the text, which would part the cue, is shortened. */
export function srt(shown) {
  const blocks = shown.map(({ startMs, endMs, lines }, k) => {
    const times = `${clock(startMs, ",")} --> ${clock(endMs, ",")}`;
    return [k + 1, times, ...lines.map((line) => line.replace(/-{2,}>/g, "->")), ""].join("\n");
  });
  return blocks.join("\n");
}

export function vtt(shown) {
  const blocks = shown.map(({ startMs, endMs, lines }) => {
    const times = `${clock(startMs, ".")} --> ${clock(endMs, ".")}`;
    return [times, ...lines.map(escaped), ""].join("\n");
  });
  return ["WEBVTT\n", ...blocks].join("\n");
}

function escaped(line) {
  return line.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function clock(timeMs, point) {
  const pad = (number, digits) => String(number).padStart(digits, "0");
  const [hours, minutes] = [Math.floor(timeMs / 3_600_000), Math.floor(timeMs / 60_000) % 60];
  const seconds = Math.floor(timeMs / 1000) % 60;
  return `${pad(hours, 2)}:${pad(minutes, 2)}:${pad(seconds, 2)}${point}${pad(timeMs % 1000, 3)}`;
}
