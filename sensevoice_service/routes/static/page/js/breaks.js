/** Words in parts, broken where it is least felt, as the service's segments.py and tags.py do. */

const PAUSE_S = 0.5;
const SENTENCE_END = /[.!?。！？…．｡]["'”’»)\]）」』】》]*$/u;
const CLAUSE_END = /[,;:，；：、､—–-]["'”’»)\]）」』】》]*$/u;
const NO_START = /^\s*[ーｰ々ゝゞヽヾぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶｧｨｩｪｫｬｭｮｯ]/u;
const ABBREVIATION = /^[^\p{L}\p{N}_]*([A-Za-z]|([A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|St|vs)\.$/u;
const CLOSING = new Set(",.!?;:%)]}…");
const UNSPACED = oneOf(
  "\u2e80-\u30ff \u3100-\u312f \u31a0-\u31ff \u3400-\u4dbf \u4e00-\u9fff \uf900-\ufaff",
  "\uff00-\uff9f \u{20000}-\u{3ffff}",
);
// Unicode's East Asian widths W and F, of what is written in texts: planes 2 and 3 are W as a whole,
// so that later Unicode's characters are, too.
const WIDE = oneOf(
  "\u1100-\u115f \u2329-\u232a \u3001-\u3229 \u3251-\ua48c \ua960-\ua97c \uac00-\ud7a3",
  "\uf900-\ufad9 \ufe10-\ufe19 \ufe30-\ufe6b \uff01-\uff60 \u{16fe0}-\u{1b2fb}",
  "\u{20000}-\u{3fffd}",
);

function oneOf(...ranges) {
  return new RegExp(`[${ranges.join("").replaceAll(" ", "")}]`, "u");
}

export function isWide(char) {
  return WIDE.test(char);
}

/**
 * Few and even parts. `reach(i)` is the end of the longest part that may start at word `i`,
 * `size(i, j)` how full a part is, 1 being full; each part costs `partCost`, and a break up to 0.9.
 */
export function divide(words, reach, size, partCost = 1) {
  const n = words.length;
  if (reach(0) === n) return [words];
  const costs = new Float64Array(n + 1);
  const ends = new Int32Array(n + 1).fill(n);
  for (let i = n - 1; i >= 0; i--) {
    costs[i] = Infinity;
    for (let j = i + 1; j <= Math.max(reach(i), i + 1); j++) {
      const full = size(i, j);
      const cost = partCost + full * full + costs[j];
      if (cost < costs[i]) [costs[i], ends[i]] = [cost, j];
    }
    costs[i] += i ? badness(words[i - 1], words[i]) : 0;
  }
  const parts = [];
  for (let start = 0; start < n; start = ends[start]) parts.push(words.slice(start, ends[start]));
  return parts;
}

function badness(before, after) {
  if (NO_START.test(after.text)) return 0.9;
  if (endsSentence(before)) return 0;
  if (after.start_s - before.end_s >= PAUSE_S) return 0.1;
  if (CLAUSE_END.test(before.text)) return 0.2;
  return after.start_s > before.end_s ? 0.4 : 0.6;
}

function endsSentence(word) {
  return !ABBREVIATION.test(word.text.trim()) && SENTENCE_END.test(word.text);
}

export function textOf(words) {
  return words.map((word) => word.text).join("").trim();
}

/** `text` with the space that its script wants between it and what stands `before` it. */
export function spaced(before, text) {
  const [left, right] = [before.trimEnd(), text.trimStart()];
  if (!left || !right || CLOSING.has(right[0])) return right;
  const isUnspaced = UNSPACED.test([...left].at(-1)) || UNSPACED.test([...right][0]);
  return isUnspaced ? right : ` ${right}`;
}
