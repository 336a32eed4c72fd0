/** The microphone, as a file. */

const TYPES = ["audio/webm;codecs=opus", "audio/ogg;codecs=opus", "audio/mp4"];
const TICK_MS = 200;
const LEAST_S = 0.1; // shorter is a slip of the finger

/** A `reason` is the key of a text of the page; `details` are for that text. */
export class MicrophoneError extends Error {
  constructor(reason, details = "") {
    super(reason);
    this.reason = reason;
    this.details = details;
  }
}

export class Recorder {
  #recorder = null;
  #pieces = [];
  #began = 0;
  #timer = 0;
  #ended = null; // a promise, once it records
  #onTick;
  #onLost;

  /** `onTick(seconds)` is called while it records, `onLost()` once the microphone has gone. */
  constructor(onTick, onLost) {
    this.#onTick = onTick;
    this.#onLost = onLost;
  }

  get isRecording() {
    return this.#recorder !== null;
  }

  /** Raises `MicrophoneError`. */
  async start() {
    const stream = await openMicrophone();
    try {
      this.#recorder = this.#record(stream);
    } catch (error) {
      release(stream);
      throw new MicrophoneError("record.failed", error.message);
    }
    this.#began = performance.now();
    this.#timer = setInterval(() => this.#onTick(this.#seconds), TICK_MS);
    this.#onTick(0);
  }

  #record(stream) {
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    const recorder = new MediaRecorder(stream, { mimeType });
    this.#pieces = [];
    recorder.ondataavailable = ({ data }) => this.#pieces.push(data);
    this.#ended = new Promise((resolve) => (recorder.onstop = resolve));
    this.#ended.then(() => this.isRecording && this.#onLost());
    // Of a microphone that has gone, Chromium would go on to record nothing.
    for (const track of stream.getTracks()) track.onended = () => end(recorder);
    recorder.start();
    return recorder;
  }

  /** The recording as a file. Raises `MicrophoneError` where there is nothing in it. */
  async stop(name) {
    const [recorder, seconds] = [this.#recorder, this.#seconds];
    this.#recorder = null;
    clearInterval(this.#timer);
    end(recorder);
    await this.#ended;
    release(recorder.stream);
    const type = recorder.mimeType.split(";")[0];
    const file = new File(this.#pieces, `${name}.${type.split("/")[1]}`, { type });
    if (seconds < LEAST_S || !file.size) throw new MicrophoneError("record.empty");
    return file;
  }

  get #seconds() {
    return (performance.now() - this.#began) / 1000;
  }
}

async function openMicrophone() {
  if (!navigator.mediaDevices?.getUserMedia) throw new MicrophoneError("record.insecure");
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    if (error.name === "NotAllowedError") throw new MicrophoneError("record.refused");
    if (error.name === "NotFoundError") throw new MicrophoneError("record.missing");
    throw new MicrophoneError("record.failed", error.message);
  }
}

/** Unless it has ended by itself. */
function end(recorder) {
  if (recorder.state !== "inactive") recorder.stop();
}

function release(stream) {
  for (const track of stream.getTracks()) track.stop();
}
