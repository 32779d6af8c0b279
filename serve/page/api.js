// The server's own API: requests with a key, errors as it tells them, events as they come, pictures by address.

const BASE = new URL("../", import.meta.url); // also right below a prefix, behind a proxy
const KEY = "vitrify-key";
const AT_ONCE = 4; // pictures that are fetched together: a browser has six connections for a server
const KEPT = 300; // pictures
const TRIES = 3;

/** A request that the server refused, or that did not reach it (status 0). after: seconds until it is worth trying. */
export class ApiError extends Error {
  constructor(status, { code = "unreachable", what, fix = "" }, after = null) {
    super(what);
    Object.assign(this, { status, code, what, fix, after });
  }
}

let ask = async () => null;
let asking = null;
let declined = false;

/** asker: shows the server's words and gives a key, or null where nobody gives one. */
export function onKeyWanted(asker) {
  ask = asker;
}

export function key() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return remembered;
  }
}

let remembered = null; // where the browser has no storage

export function setKey(value) {
  declined = false;
  remembered = value || null;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // it is remembered until the page is left
  }
}

/** Where a path of the server's is: "/v1/jobs" or "v1/jobs". */
export function address(path) {
  return new URL(path.replace(/^\//, ""), BASE).href;
}

/** Characters that nobody guesses. crypto.randomUUID would be missing over plain HTTP. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * A response with a good status.
 *
 * Without credentials: else a browser shows its own window for a password when a key is missing.
 * Throws ApiError.
 */
async function fetched(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (;;) {
    const used = key();
    const sent = { ...headers };
    if (used) sent.Authorization = `Bearer ${used}`;
    if (body !== undefined) sent["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(address(path), { method, body, headers: sent, signal, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      document.dispatchEvent(new Event("server-away"));
      throw new ApiError(0, { what: "The server cannot be reached.", fix: "See whether it runs." });
    }
    if (response.ok) return response;
    const error = await refusal(response);
    if (error.status !== 401 || !(await keyGiven(error, used))) throw error;
  }
}

async function refusal(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // a proxy's page
  }
  const after = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const what = said.what ?? `The server answered with ${response.status}.`;
  if (response.status === 401) said.fix = "Give one with the button at the top."; // its own words are for programs
  return new ApiError(response.status, { ...said, what }, Number.isFinite(after) ? after : null);
}

/** Whether there is another key to try. Many requests that fail together ask once. */
async function keyGiven(error, used) {
  if (key() !== used) return true;
  if (declined) return false;
  asking ??= ask(error.what).finally(() => (asking = null));
  const given = await asking;
  if (given) {
    setKey(given);
    return true;
  }
  declined = true;
  document.dispatchEvent(new Event("key-declined"));
  return false;
}

/** JSON from the server. Seeds that a double cannot hold stay exact, as strings. */
export async function get(path, options = {}) {
  return parsed(await (await fetched(path, options)).text());
}

export async function post(path, given, options = {}) {
  const body = given === undefined ? undefined : written(given);
  return parsed(await (await fetched(path, { ...options, method: "POST", body })).text());
}

export async function remove(path) {
  return parsed(await (await fetched(path, { method: "DELETE" })).text());
}

function parsed(text) {
  return JSON.parse(text.replace(/("seed":\s*)(\d{16,})/g, '$1"$2"'));
}

/** The other way: a seed is given as a string of digits and sent as a number, all digits of it. */
function written(given) {
  const { seed, ...rest } = given;
  const text = JSON.stringify(rest);
  return seed === undefined || seed === null ? text : `${text.slice(0, -1)},"seed":${BigInt(seed)}}`;
}

/**
 * Let a job in; asks once more, with the same Idempotency-Key, where the answer was lost on the way.
 *
 * Throws ApiError.
 */
export async function submit(body) {
  const options = { headers: { "Idempotency-Key": newKey() } };
  try {
    return await post("v1/jobs", body, options);
  } catch (error) {
    if (error.status !== 0) throw error;
    await pause(0.5);
    return post("v1/jobs", body, options);
  }
}

/** The data of server-sent events, one after the other. Not EventSource: it sends no Authorization. */
export async function* events(path, signal) {
  const response = await fetched(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
        if (data.length) yield parsed(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const pictures = new Map(); // path -> promise of the below, the one used last at the end
const turns = [];
let fetching = 0;

/** A picture that was fetched with the key, a few at a time: {blob, url, type, bytes}; url is the blob's. */
export function picture(path) {
  let found = pictures.get(path);
  pictures.delete(path);
  if (!found) {
    found = inTurn(() => bytes(path)).then((blob) => ({ blob, url: URL.createObjectURL(blob), type: blob.type, bytes: blob.size }));
    found.catch(() => pictures.delete(path));
  }
  pictures.set(path, found);
  if (pictures.size > KEPT) {
    const [oldest, gone] = pictures.entries().next().value;
    pictures.delete(oldest);
    gone.then(({ url }) => URL.revokeObjectURL(url), () => {});
  }
  return found;
}

async function bytes(path) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await (await fetched(path)).blob();
    } catch (error) {
      if (error.after === null || error.after === undefined || tries >= TRIES) throw error;
      await pause(error.after);
    }
  }
}

async function inTurn(work) {
  if (fetching >= AT_ONCE) await new Promise((go) => turns.push(go));
  fetching += 1;
  try {
    return await work();
  } finally {
    fetching -= 1;
    turns.shift()?.();
  }
}

export function pause(seconds) {
  return new Promise((go) => setTimeout(go, seconds * 1000));
}

/** Whether the server takes jobs: "ready", what it says it does, or "away". */
export async function readiness() {
  try {
    const response = await fetch(address("readyz"), { credentials: "omit", cache: "no-store" });
    return response.ok ? "ready" : ((await response.json()).status ?? "not ready");
  } catch {
    return "away";
  }
}
