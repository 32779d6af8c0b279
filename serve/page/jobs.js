// Jobs in flight: each is followed until it ends, whatever panel started it.
//
// A stream of events holds one of the six connections that a browser has for a server, over all its windows. So only
// the jobs that run next have one, none has while the page is hidden, and the others are asked after together.

import { ApiError, events, get, remove, submit } from "./api.js";

const STREAMS = { generate: 2, classify: 1 };
const POLL = 1.5; // seconds
const HIDDEN = 4; // seconds, while nobody looks
const REST = 5; // seconds after a stream broke

const FINAL = new Set(["succeeded", "failed", "cancelled", "interrupted"]);

export const isFinal = (job) => FINAL.has(job.status);

/** A job as the page knows it. "change": it is told of each change; ended: a promise of the job when it is done. */
class Followed extends EventTarget {
  constructor(job) {
    super();
    this.job = job;
    this.ended = new Promise((go) => (this.end = go));
    this.stream = null;
    this.rests = 0; // until when it has no stream, ms
  }

  get id() {
    return this.job.id;
  }

  take(job) {
    if (isFinal(this.job)) return;
    this.job = { ...job, preview: job.preview ?? this.job.preview };
    this.dispatchEvent(new Event("change"));
    if (isFinal(job)) this.end(this.job);
  }
}

/** All of them. "ended": detail is the job; one of this client's jobs is done. "count": more or fewer are in flight. */
class Jobs extends EventTarget {
  #open = new Map(); // id -> Followed, in the order in which they came
  #timer = null;
  #asking = false;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => this.#look());
  }

  get count() {
    return this.#open.size;
  }

  /** Submit and follow. Throws ApiError where it is refused. */
  async submit(body) {
    return this.follow(await submit(body));
  }

  /** Follow a job that there is. */
  follow(job) {
    const known = this.#open.get(job.id);
    if (known) return known;
    const followed = new Followed(job);
    if (isFinal(job)) {
      followed.end(job);
      return followed;
    }
    this.#open.set(job.id, followed);
    this.dispatchEvent(new Event("count"));
    followed.ended.then((done) => {
      this.#open.delete(job.id);
      followed.stream?.abort();
      this.dispatchEvent(new Event("count"));
      this.dispatchEvent(new CustomEvent("ended", { detail: done }));
      this.#look();
    });
    this.#look();
    return followed;
  }

  /** Stop a job within a step. */
  async cancel(id) {
    const said = await remove(`v1/jobs/${id}`);
    this.#open.get(id)?.take(said);
  }

  /** Give out the streams again, and see to the next poll. */
  #look() {
    const left = { ...STREAMS };
    const turn = [...this.#open.values()].sort(
      (a, b) => (b.job.status === "running") - (a.job.status === "running") || a.job.created - b.job.created,
    );
    for (const one of turn) {
      const may = !document.hidden && one.rests < Date.now() && (left[one.job.kind] ?? 0) > 0;
      if (may) left[one.job.kind] -= 1;
      if (may && !one.stream) this.#stream(one);
      if (!may) one.stream?.abort();
    }
    if (this.#timer === null && this.#open.size) {
      this.#timer = setTimeout(() => {
        this.#timer = null;
        this.#poll();
      }, (document.hidden ? HIDDEN : POLL) * 1000);
    }
  }

  async #stream(one) {
    const stop = (one.stream = new AbortController());
    try {
      for await (const job of events(`v1/jobs/${one.id}/events`, stop.signal)) one.take(job);
      if (!isFinal(one.job)) one.rests = Date.now() + REST * 1000;
    } catch (error) {
      if (error.name !== "AbortError") one.rests = Date.now() + REST * 1000; // the poll tells why, if it stays so
    } finally {
      if (one.stream === stop) one.stream = null;
    }
  }

  /** One question for all that have no stream; then for each that is in the queue no more. */
  async #poll() {
    const blind = [...this.#open.values()].filter((one) => !one.stream);
    let wait = 0;
    if (blind.length && !this.#asking) {
      this.#asking = true;
      try {
        const { mine } = await get("v1/queue");
        const known = new Map(mine.map((job) => [job.id, job]));
        for (const one of blind) one.take(known.get(one.id) ?? (await this.#asked(one)));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error; // it is not there or says no: ask again
        wait = error.after ?? 0;
      } finally {
        this.#asking = false;
      }
    }
    if (wait) setTimeout(() => this.#look(), wait * 1000);
    else this.#look();
  }

  async #asked(one) {
    try {
      return await get(`v1/jobs/${one.id}`);
    } catch (error) {
      if (error.status !== 404 && error.status !== 410) throw error;
      return { ...one.job, status: "failed", error };
    }
  }
}

export const jobs = new Jobs();
