/** The words of a segment of the service's answer, each with its place in the text and in time. */

/** Put together, their texts are the segment's. Of a segment without words, its text is one. */
export function wordsOf(segment) {
  const { text, start_s, end_s } = segment;
  return placedWords(segment) ?? [{ start_s, end_s, text }];
}

/** Each with the space ahead of it; null where there are none, or none that follow the text. */
export function placedWords({ text, words }) {
  if (!words?.length) return null;
  const placed = [];
  let end = 0;
  for (const { word, start_s, end_s } of words) {
    const [start, found] = [end, text.indexOf(word, end)];
    if (found < 0) return null;
    end = found + word.length;
    placed.push({ start_s, end_s, text: text.slice(start, end) });
  }
  placed.at(-1).text += text.slice(end);
  return placed;
}

/** The index of the last word that has begun at `timeS`, or −1. The words are in order. */
export function wordAt(words, timeS) {
  let [low, high] = [0, words.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].start_s <= timeS) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
