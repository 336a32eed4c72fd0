/** Why a file has no transcript, what to do about it, and whether to offer another try. */
import { isText } from "./language.js";

const WORTH_ANOTHER_TRY = new Set([0, 401, 408, 429, 500, 502, 503, 504, 507]);
const USUAL_WAIT_S = 5;

export class Failure extends Error {
  constructor({ status, code, message, requestId = "", retryAfterS = null }) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.retryAfterS = retryAfterS ?? USUAL_WAIT_S;
  }

  get isWorthAnotherTry() {
    // The next try has the options as they are then: a slip in them costs no recording.
    return WORTH_ANOTHER_TRY.has(this.status) || this.code === "invalid_request";
  }

  /** The key of its title; with `.do` behind it, of what to do. */
  get key() {
    const known = `error.${this.code}`;
    return isText(known) ? known : "error.other";
  }

  get values() {
    return { seconds: this.retryAfterS, request: this.requestId || "–" };
  }
}

export function networkFailure() {
  return new Failure({ status: 0, code: "network", message: "" });
}

export function cutOff() {
  return new Failure({ status: 0, code: "cut_off", message: "" });
}

/** Of an answer's or an event's body; a proxy may have written it instead of the service. */
export function failureOf(status, body, headers = {}) {
  let [told, error] = [{}, {}];
  try {
    told = JSON.parse(body);
    error = told.error ?? {};
  } catch {
    // Then its status has to do.
  }
  return new Failure({
    status: told.status ?? error.status ?? status,
    code: error.code ?? (status === 503 ? "overloaded" : "other"),
    message: error.message ?? `HTTP ${status}`,
    requestId: error.request_id ?? headers.requestId,
    retryAfterS: headers.retryAfterS ?? null,
  });
}
