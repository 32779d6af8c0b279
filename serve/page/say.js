// Words to the user that belong to no place on the page.

import { write } from "./dom.js";

const SHOWN = 2.5; // seconds

let timer = 0;

/** Show a short text at the bottom for a moment; it is read aloud too. */
export function say(text) {
  const toast = document.getElementById("toast");
  // a modal dialog makes everything outside it inert, and lies above it
  (document.querySelector("dialog[open]") ?? document.body).append(toast);
  write(toast, text);
  toast.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => {
    toast.classList.remove("shown");
    write(toast, "");
  }, SHOWN * 1000);
}

/** For ears only: what eyes see anyway. */
export function announce(text) {
  write(document.getElementById("spoken"), text);
}
