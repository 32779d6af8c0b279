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
  return found;
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
