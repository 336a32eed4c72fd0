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
  #onTick;

  /** `onTick(seconds)` is called while it records. */
  constructor(onTick) {
    this.#onTick = onTick;
  }

  get isRecording() {
    return this.#recorder !== null;
  }

  /** Raises `MicrophoneError`. */
  async start() {
    const stream = await openMicrophone();
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.#pieces = [];
    this.#recorder = new MediaRecorder(stream, { mimeType });
    this.#recorder.ondataavailable = ({ data }) => this.#pieces.push(data);
    this.#recorder.start();
    this.#began = performance.now();
    this.#timer = setInterval(() => this.#onTick(this.#seconds), TICK_MS);
    this.#onTick(0);
  }

  /** The recording as a file. Raises `MicrophoneError` where there is nothing in it. */
  async stop(name) {
    const [recorder, seconds] = [this.#recorder, this.#seconds];
    this.#recorder = null;
    clearInterval(this.#timer);
    await new Promise((resolve) => {
      recorder.onstop = resolve;
      recorder.stop();
    });
    for (const track of recorder.stream.getTracks()) track.stop();
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
