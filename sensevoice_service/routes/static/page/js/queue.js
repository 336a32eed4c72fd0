/** Runs jobs in order, a few at once, so that a person does not take all places of the service. */
const AT_ONCE = 2;

export class Queue {
  #waiting = [];
  #running = 0;

  /** `job` gives a promise; it tells of its own failures. */
  add(job) {
    this.#waiting.push(job);
    this.#next();
  }

  async #next() {
    if (this.#running >= AT_ONCE || !this.#waiting.length) return;
    this.#running += 1;
    try {
      await this.#waiting.shift()();
    } finally {
      this.#running -= 1;
      this.#next();
    }
  }
}
