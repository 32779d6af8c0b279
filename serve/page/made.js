// What a drawing was made with besides its prompt, in words.

import { MADE_BY } from "./nets.js";

/**
 * [title, text] of each. given: a job's body, or a picture's parameters. began: which pictures it was given, of "image"
 * and "mask".
 */
export function madeWith(given, began = given.began ?? []) {
  const { strength, loras, control, hooks } = given;
  const found = [];
  if (began.includes("image") || (began.length === 0 && strength)) {
    const what = began.includes("mask") ? "a picture and a mask" : "a picture";
    found.push(["Start", [what, strength && `strength ${strength}`].filter(Boolean).join(", ")]);
  }
  const laid = Object.entries(loras ?? {});
  if (laid.length) found.push([laid.length > 1 ? "LoRAs" : "LoRA", laid.map(([name, one]) => `${name} ${[one].flat().join(" / ")}`).join(", ")]);
  if (control?.length) found.push([control.length > 1 ? "ControlNets" : "ControlNet", control.map(unit).join("; ")]);
  if (hooks) found.push(["Hooks", hooks.join(", ") || "none"]);
  const less = lessText(lessOf(given)) || (given.preset === "fast" ? "fast" : "");
  if (less) found.push(["Less work", less]);
  return found;
}

/** What of the work is left out, of a job's body or a picture's parameters: the fields that are not as usual. */
export function lessOf({ step_cache: cache, guidance_interval: part, guidance_every: every, decoder }) {
  return {
    ...(cache ? { step_cache: cache } : {}),
    ...(part && (part[0] > 0 || part[1] < 1) ? { guidance_interval: part } : {}),
    ...(every > 1 ? { guidance_every: every } : {}),
    ...(decoder && decoder !== "vae" ? { decoder } : {}),
  };
}

/** The same in words. */
export function lessText({ step_cache: cache, guidance_interval: part, guidance_every: every, decoder }) {
  const number = (share) => Number(share.toFixed(3));
  return [
    cache && `step cache ${cache}`,
    part && `guidance from ${number(part[0])} to ${number(part[1])}`,
    every && `guidance every ${every}`,
    decoder && "the small decoder",
  ].filter(Boolean).join(", ");
}

function unit({ net, made_by: way, strength, start = 0, end = 1 }) {
  const part = start > 0 || end < 1 ? `from ${start} to ${end}` : "";
  const made = way && way !== "picture" ? Object.fromEntries(MADE_BY)[way] : "";
  return [`${net} ${strength ?? 1}`, made, part].filter(Boolean).join(", ");
}

/** Strengths of LoRAs by their names, those of the denoiser and of the text encoders in one where they are the same. */
export function evened(loras) {
  const one = (strengths) => (new Set([strengths].flat()).size === 1 ? [strengths].flat()[0] : strengths);
  return Object.fromEntries(Object.entries(loras).map(([name, strengths]) => [name, one(strengths)]));
}

/** A LoRA as a prompt names it; strengths: one, or the denoiser's and the text encoders'. */
export function tagOf(name, strengths) {
  const [own, text = own] = [strengths].flat();
  return `<lora:${name}:${text === own ? own : `${text}:${own}`}>`;
}
