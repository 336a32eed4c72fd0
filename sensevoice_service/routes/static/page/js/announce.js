/** What happens, for those who hear the page: news when it suits, errors at once. */
import { find } from "./dom.js";

export function announce(words) {
  find("#news").textContent = words;
}

export function warn(words) {
  find("#alarm").textContent = words;
}
