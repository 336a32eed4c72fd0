/** One file to the service and its transcript back, with all that is told on the way. */
import { eventReader } from "./events.js";
import { cutOff, failureOf, networkFailure } from "./failure.js";

/**
 * `listener` has `uploaded(fraction)` and `recognised(fraction, newText)`. Gives what the service
 * knows of the file, as in `details` of its answer, and `model`; rejects with a `Failure`.
 * `signal` ends it.
 *
 * It is an XMLHttpRequest since fetch does not tell how much of an upload has left.
 */
export function transcribe(file, fields, key, listener, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const answer = new Answer(request, listener);
    request.open("POST", "transcribe");
    if (key) request.setRequestHeader("authorization", `Bearer ${key}`);
    request.upload.onprogress = ({ loaded, total }) => listener.uploaded(loaded / (total || 1));
    request.upload.onload = () => listener.uploaded(1);
    request.onprogress = () => answer.read();
    request.onerror = () => reject(answer.hasBegun ? cutOff() : networkFailure());
    request.onabort = () => reject(cutOff());
    request.onload = () => {
      answer.read();
      if (answer.failure) reject(answer.failure);
      else resolve(answer.detail);
    };
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form(file, fields));
  });
}

function form(file, fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== "") data.append(name, value);
  data.append("timestamps", "word");
  data.append("stream", "true");
  data.append("files", file, file.name);
  return data;
}

class Answer {
  #request;
  #listener;
  #read = 0;
  #body = null;
  #error = null;
  #feed = eventReader((name, data) => this.#hear(name, data));

  constructor(request, listener) {
    this.#request = request;
    this.#listener = listener;
  }

  get hasBegun() {
    return this.#read > 0;
  }

  read() {
    if (!this.#isStream) return;
    const all = this.#request.responseText;
    this.#feed(all.slice(this.#read));
    this.#read = all.length;
  }

  get failure() {
    const { status, responseText } = this.#request;
    if (this.#error) return this.#error;
    if (status !== 200) return failureOf(status, responseText, this.#headers);
    if (!this.#body) return cutOff();
    const { error } = this.#body.details[0];
    return error && failureOf(error.status, JSON.stringify({ error }), this.#headers);
  }

  get detail() {
    return { ...this.#body.details[0], model: this.#body.model };
  }

  get #isStream() {
    const type = this.#request.getResponseHeader("content-type") ?? "";
    return this.#request.status === 200 && type.startsWith("text/event-stream");
  }

  get #headers() {
    const seconds = Number.parseInt(this.#request.getResponseHeader("retry-after"), 10);
    return {
      retryAfterS: Number.isNaN(seconds) ? null : seconds,
      requestId: this.#request.getResponseHeader("x-request-id"),
    };
  }

  #hear(name, data) {
    if (name === "done") this.#body = JSON.parse(data);
    if (name === "error") this.#error = failureOf(500, data, this.#headers);
    if (name === "progress") {
      const { fraction, text } = JSON.parse(data);
      this.#listener.recognised(fraction, text);
    }
  }
}
