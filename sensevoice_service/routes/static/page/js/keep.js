/** Small choices that outlive a visit, unless the browser forbids that. */
const PREFIX = "sensevoice-";

export function recall(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, value);
  } catch {
    // Nothing is lost but the memory of a choice.
  }
}
