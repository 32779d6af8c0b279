// A picture that a job drew: where it lies, how it was made, and what one does with it.

import { picture } from "./api.js";
import { copy, save } from "./dom.js";
import { evened, tagOf } from "./made.js";
import { say } from "./say.js";
import { told } from "./words.js";

const NAMES = {
  steps: "Steps", scheduler: "Sampler", guidance: "CFG scale", seed: "Seed", size: "Size", model: "Model",
  strength: "Denoising strength",
}; // as other interfaces write and read them

/** All pictures of a job that succeeded: {job, number, path, parameters}. */
export function shotsOf(job) {
  return (job.pictures ?? []).map((path, number) => ({ job, number, path, parameters: parametersOf(job, number) }));
}

/**
 * By the names of a job's body; drawn again with them, and with its pictures, it is the same picture.
 *
 * began: which pictures it was given, of "image" and "mask".
 */
function parametersOf(job, number) {
  const { rng, control = [], loras = {}, ...given } = job.details?.parameters?.[number] ?? {};
  const { format, hooks = null, preset = null, control: asked = [], pictures: began = [] } = job.request ?? {};
  const units = control.map((unit, at) => ({ ...unit, made_by: asked[at]?.made_by ?? "picture" }));
  return { ...given, loras: evened(loras), control: units, hooks, preset, began, model: job.model, images: 1, ...(format ? { format } : {}) };
}

/** The parameters as a text that can be pasted elsewhere. */
export function textOf({ parameters }) {
  const { prompt, negative_prompt: negative, width, height } = parameters;
  const values = { ...parameters, size: width && `${width}x${height}` };
  const tags = Object.entries(parameters.loras).map(([name, strengths]) => tagOf(name, strengths));
  const settings = Object.entries(NAMES)
    .filter(([name]) => values[name] !== undefined && values[name] !== null)
    .map(([name, title]) => `${title}: ${quoted(values[name])}`);
  settings.push(...parameters.control.map((unit, at) => `ControlNet ${at}: ${quoted(unitText(unit))}`));
  return [[prompt ?? "", ...tags].join(" "), ...(negative ? [`Negative prompt: ${negative}`] : []), settings.join(", ")].join("\n");
}

/** As the ControlNet extension of the web UI writes it. */
function unitText({ net, made_by: way, strength, start, end }) {
  const module = way === "picture" ? "none" : way;
  return `Module: ${module}, Model: ${net}, Weight: ${strength}, Guidance Start: ${start}, Guidance End: ${end}`;
}

function quoted(value) {
  const text = String(value);
  return /[,:\n]/.test(text) ? JSON.stringify(text) : text;
}

/** What a screen reader says of it. */
export function nameOf({ parameters }) {
  return parameters.prompt || "a picture without a prompt";
}

export async function copyText(shot) {
  try {
    await copy(textOf(shot));
    say("Settings copied.");
  } catch (error) {
    say(told(error));
  }
}

export async function download(shot) {
  try {
    const { url, type } = await picture(shot.path);
    const words = (nameOf(shot).toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).slice(0, 8).join("-").slice(0, 80);
    save(url, `${words || "picture"}-${shot.parameters.seed ?? shot.number}.${type.split("/")[1] ?? "png"}`);
  } catch (error) {
    say(told(error));
  }
}

/** Whether the server had it once, and has removed it for its age or for room. */
export const isGone = (error) => error.status === 410 || error.status === 404;

/**
 * Put a picture's bytes into an <img>; its place keeps its size meanwhile. Where there are none, the element around it
 * says so: data-missing. Resolves with the error, or with null.
 */
export async function show(image, shot) {
  image.dataset.path = shot.path;
  delete image.parentElement?.dataset.missing;
  const { width, height } = shot.parameters;
  image.classList.toggle("tiny", Boolean(width) && Math.max(width, height) <= 128); // pixels rather than a blur
  try {
    const { url } = await picture(shot.path);
    if (image.dataset.path === shot.path) image.src = url;
    return null;
  } catch (error) {
    if (image.dataset.path === shot.path) {
      image.removeAttribute("src");
      image.parentElement.dataset.missing = isGone(error) ? "Removed from the server" : "Cannot be fetched";
    }
    return error;
  }
}
