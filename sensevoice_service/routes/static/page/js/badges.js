/** Language, emotion and sounds of a file or a segment, as small labels. */
import { element } from "./dom.js";
import { isText, say } from "./language.js";

const UNTOLD = new Set(["EMO_UNKNOWN", "Event_UNK", "unknown", "", null, undefined]);

/** Those tags of `part` that say something and are not those of `whole` as well. */
export function badges(part, whole = { language: "", emotion: "", events: [] }) {
  const shown = [];
  if (part.language !== whole.language) shown.push(badge("language", part.language));
  if (part.emotion !== whole.emotion) shown.push(badge("emotion", part.emotion));
  for (const event of part.events) {
    if (!whole.events.includes(event)) shown.push(badge("event", event));
  }
  return shown.filter((one) => one !== null);
}

function badge(kind, tag) {
  if (UNTOLD.has(tag)) return null;
  const made = element("li", { class: `badge ${kind}`, "data-tag": tag });
  const name = element("span");
  // Models have more tags than the page has words for: those are shown as they are.
  if (isText(`${kind}.${tag}`)) say(name, `${kind}.${tag}`);
  else name.textContent = tag;
  made.append(element("span", { class: "for-readers" }), name);
  say(made.firstChild, `badge.${kind}`);
  return made;
}
