/** What a waveform is drawn from: how loud each stretch of the sound is, 0…1. */
const N_PEAKS = 1200;
const RATE_HZ = 8000;
// A browser decodes a file whole, in floats at its own rate: an hour would take gigabytes.
const LONGEST_S = 20 * 60;
const LARGEST_BYTES = 64 * 2 ** 20;

let before = Promise.resolve(); // one file at a time is decoded, also where many come at once

/** From the sound itself, or null where that would take too much memory or cannot be decoded. */
export function peaksOfSound(file, durationS) {
  if (durationS > LONGEST_S || file.size > LARGEST_BYTES) return Promise.resolve(null);
  before = before.then(() => decoded(file));
  return before;
}

async function decoded(file) {
  try {
    const context = new OfflineAudioContext(1, 1, RATE_HZ);
    const sound = await context.decodeAudioData(await file.arrayBuffer());
    return { peaks: loudness(sound.getChannelData(0)), durationS: sound.duration };
  } catch {
    return null;
  }
}

/** From the times of the words: where somebody speaks. */
export function peaksOfWords(words, durationS) {
  const peaks = new Float32Array(N_PEAKS).fill(0.04);
  for (const { start_s, end_s } of words) {
    const [first, last] = [start_s, end_s].map((s) => Math.floor((s / durationS) * N_PEAKS));
    peaks.fill(0.6, first, last + 1);
  }
  return { peaks, durationS };
}

/** Root mean squares: of an hour's stretches nearly all have a peak, but not all are loud. */
function loudness(samples) {
  const peaks = new Float32Array(Math.min(N_PEAKS, samples.length));
  const width = samples.length / peaks.length;
  for (let i = 0; i < peaks.length; i++) {
    const [start, end] = [Math.floor(i * width), Math.floor((i + 1) * width)];
    let sum = 0;
    for (let j = start; j < end; j++) sum += samples[j] * samples[j];
    peaks[i] = Math.sqrt(sum / (end - start));
  }
  return peaks;
}
