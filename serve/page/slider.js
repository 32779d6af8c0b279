// A number with a slider for its usual values.

import { el, newId } from "./dom.js";

/**
 * A slider for the usual values beside a number for all of them; its `value` is the number's.
 *
 * min, max: of the slider. least, most: of the number. any: the number need not be one of the slider's steps.
 */
export function paired(label, { min, max, least = min, most = max, step, value, any }) {
  const number = el("input", { type: "number", min: least, max: most, step: any ? "any" : step, value, required: true });
  const slider = el("input", { type: "range", min, max, step, value, tabindex: -1, "aria-hidden": "true" });
  number.addEventListener("input", () => (slider.value = number.value));
  slider.addEventListener("input", () => (number.value = slider.value));
  number.id = newId("number");
  return {
    number,
    node: el("div", { class: "field" }, el("label", { for: number.id, title: label }, label), el("div", { class: "line" }, slider, number)),
    get value() {
      return number.value;
    },
    set value(given) {
      number.value = slider.value = given;
    },
  };
}
