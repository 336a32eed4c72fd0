/** A transcript as cues of a readable size: the way of the service's subtitles.py. */
import { divide, isWide, spaced, textOf } from "./breaks.js";
import { placedWords } from "./words.js";

const FEWEST = 100; // a line more is never worth a better break
// What Python takes for white space.
const SPACE =
  "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const SPACES = new RegExp(`[${SPACE}]+`, "g");
const LEADING = new RegExp(`^[${SPACE}]`);
const SPOKEN = new RegExp(`[${SPACE}]*[^${SPACE}]+`, "g");

/**
 * `{startMs, endMs, lines}` in order, of a file's `details`. `rules` are those of the service:
 * `max_line_latin`, `max_line_cjk`, `max_lines`, `min_s`, `max_s`.
 */
export function cues(detail, rules) {
  const stretches = detail.segments.flatMap((segment) => {
    const words = tidy(segment).flatMap((word) => cut(word, rules));
    const layout = new Layout(words, rules);
    if (!words.length) return [];
    return divide(words, (i) => layout.cueEnd(i), (i, j) => layout.cueShare(i, j));
  });
  return timed(shared(stretches, rules), rules, ms(detail.duration_s));
}

/** What of `words` fits a line or a cue. Widths are whole: a full line is not over by a hair. */
class Layout {
  #words;
  #rules;
  #margins;
  #ends = [0];

  constructor(words, rules) {
    this.#words = words;
    this.#rules = rules;
    this.#margins = words.map((word) => width(margin(word.text), rules));
    for (const word of words) this.#ends.push(this.#ends.at(-1) + width(word.text, rules));
  }

  lineEnd(start) {
    let end = start;
    while (end < this.#words.length && this.lineShare(start, end + 1) <= 1) end++;
    return end;
  }

  lineShare(start, end) {
    const across = this.#ends[end] - this.#ends[start] - this.#margins[start];
    return across / lineWidth(this.#rules);
  }

  cueEnd(start) {
    let end = start;
    for (let line = 0; line < this.#rules.max_lines; line++) {
      if (end < this.#words.length) end = this.lineEnd(end);
    }
    while (end > start + 1 && this.#seconds(start, end) > this.#rules.max_s) end--;
    return end;
  }

  cueShare(start, end) {
    const across = this.lineShare(start, end) / this.#rules.max_lines;
    return Math.max(across, this.#seconds(start, end) / this.#rules.max_s);
  }

  lines() {
    const reach = (i) => this.lineEnd(i);
    return divide(this.#words, reach, (i, j) => this.lineShare(i, j), FEWEST).map(textOf);
  }

  #seconds(start, end) {
    return this.#words[end - 1].end_s - this.#words[start].start_s;
  }
}

/** The words of a segment with single spaces; those of a text alone share its time by letters. */
function tidy(segment) {
  const words = placedWords(segment) ?? shares(segment);
  return words.flatMap((word) => {
    const text = word.text.replace(SPACES, " ").trim();
    return text ? [{ ...word, text: margin(word.text) + text }] : [];
  });
}

function shares({ text, start_s, end_s }) {
  const letterS = (end_s - start_s) / Math.max(1, [...text].length);
  return [...text.matchAll(SPOKEN)].map((part) => {
    const before = [...text.slice(0, part.index)].length;
    const after = before + [...part[0]].length;
    return { start_s: start_s + before * letterS, end_s: start_s + after * letterS, text: part[0] };
  });
}

/** A word that is wider than a line, as lines of it, which share its time. */
function cut(word, rules) {
  const spoken = word.text.trimStart();
  if (width(spoken, rules) <= lineWidth(rules)) return [word];
  const texts = [margin(word.text)];
  for (const char of spoken) {
    if (width((texts.at(-1) + char).trimStart(), rules) > lineWidth(rules)) texts.push("");
    texts[texts.length - 1] += char;
  }
  const shareS = (word.end_s - word.start_s) / texts.length;
  return texts.map((text, k) => ({
    start_s: word.start_s + k * shareS,
    end_s: word.start_s + (k + 1) * shareS,
    text,
  }));
}

function margin(text) {
  return LEADING.test(text) ? " " : "";
}

function lineWidth(rules) {
  return rules.max_line_latin * rules.max_line_cjk;
}

function width(text, rules) {
  let sum = 0;
  for (const char of text) sum += isWide(char) ? rules.max_line_latin : rules.max_line_cjk;
  return sum;
}

/** One that the next leaves too little time is put before it, if both fit. */
function shared(stretches, rules) {
  const kept = [];
  for (const words of stretches) {
    const last = kept.at(-1);
    const isBrief = last && words[0].start_s - last[0].start_s < rules.min_s;
    const both = isBrief ? joined(last, words) : null;
    if (both && new Layout(both, rules).cueEnd(0) === both.length) kept[kept.length - 1] = both;
    else kept.push(words);
  }
  return kept;
}

function joined(left, [first, ...rest]) {
  const text = margin(first.text) ? first.text : spaced(left.at(-1).text, first.text);
  return [...left, { ...first, text }, ...rest];
}

function timed(stretches, rules, durationMs) {
  const starts = inOrder(stretches.map((words) => ms(words[0].start_s)), durationMs, 1);
  return stretches.map((words, k) => {
    const startMs = starts[k];
    const wanted = Math.max(ms(words.at(-1).end_s), startMs + ms(rules.min_s));
    const endMs = Math.min(wanted, startMs + ms(rules.max_s), starts[k + 1] ?? durationMs);
    return { startMs, endMs, lines: new Layout(words, rules).lines() };
  });
}

/** Moved `apart` where they run backwards, and back from `stop`. */
function inOrder(starts, stop, apart) {
  const ordered = [];
  for (const start of starts) ordered.push(Math.max(start, (ordered.at(-1) ?? -apart) + apart));
  let latest = stop - apart;
  for (let k = ordered.length - 1; k >= 0; k--) {
    ordered[k] = Math.max(0, Math.min(ordered[k], latest));
    latest = ordered[k] - apart;
  }
  return ordered;
}

/** Halves go to the even number, as in Python. */
function ms(timeS) {
  const exact = timeS * 1000;
  const below = Math.floor(exact);
  const isUp = exact - below > 0.5 || (exact - below === 0.5 && below % 2 === 1);
  return isUp ? below + 1 : below;
}
