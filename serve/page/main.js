// The page: its panels, the way between them, the key and the colours.

import { key, onKeyWanted, readiness, setKey } from "./api.js";
import { classify } from "./classify.js";
import { el, field, write } from "./dom.js";
import { gallery } from "./gallery.js";
import { generate } from "./generate.js";
import { icon } from "./icons.js";
import { models } from "./models.js";
import { queue } from "./queue.js";
import { say } from "./say.js";
import { told } from "./words.js";

// A new panel is one file and one row here: {id, title, make(app)}. make gives {node, shown?, takers?, badge?}: shown
// is called when the panel comes into view; takers, each {label, take(shot), works?()}, are offered wherever a picture is
// shown, as long as they work; badge is an element beside the panel's name.
const PANELS = [generate, classify, gallery, queue];

const CHECK = 10; // seconds between two looks at the server
const AWAY = 2; // the same while it does not answer
const open = new Map(); // id -> {tab, part, panel}
let current = null;

const app = {
  /** Show a panel. */
  go(id) {
    if (location.hash !== `#${id}`) history.pushState(null, "", `#${id}`);
    showPanel(id);
  },
  /** What panels offer to do with a picture. */
  takers: () => [...open.values()].flatMap(({ panel }) => panel.takers ?? []),
};

function showPanel(id) {
  if (!open.has(id) || id === current) return;
  current = id;
  for (const [name, { tab, part }] of open) {
    tab.setAttribute("aria-selected", String(name === id));
    tab.tabIndex = name === id ? 0 : -1;
    part.hidden = name !== id;
  }
  const { panel, title } = open.get(id);
  document.title = `${title}, vitrify`;
  scrollTo(0, 0);
  panel.shown?.();
}

function build() {
  const tabs = document.getElementById("tabs");
  const main = document.getElementById("main");
  for (const { id, title, make } of PANELS) {
    const panel = make(app);
    const tab = el("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, "aria-selected": "false", tabindex: -1, onclick: () => app.go(id) }, title, panel.badge);
    const part = el("section", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, hidden: true }, panel.node);
    tabs.append(tab);
    main.append(part);
    open.set(id, { tab, part, panel, title });
  }
  tabs.addEventListener("keydown", (event) => {
    const ids = [...open.keys()];
    const at = ids.indexOf(current);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: ids.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = ids[(to + ids.length) % ids.length];
    app.go(next);
    open.get(next).tab.focus(); // a panel may have taken it
  });
}

const fromHash = () => {
  const id = location.hash.slice(1);
  if (open.has(id)) showPanel(id);
  else if (current === null) showPanel(PANELS[0].id);
};

/** The server's state, the key and the colours, at the top right. */
function tools() {
  const state = el("span", { class: "state", role: "status" }, el("i", { "aria-hidden": "true" }), el("span", {}, "…"));
  const keyButton = el("button", { type: "button", class: "square", title: "API key", "aria-label": "API key", onclick: changeKey }, icon("key"));
  const theme = el("button", { type: "button", class: "square", onclick: () => document.dispatchEvent(new Event("theme-toggle")) });
  const paint = () => {
    const dark = document.documentElement.dataset.theme === "dark";
    const label = dark ? "Light colours" : "Dark colours";
    theme.replaceChildren(icon(dark ? "light" : "dark"));
    theme.title = label;
    theme.setAttribute("aria-label", label);
  };
  document.addEventListener("theme", paint);
  paint();
  document.getElementById("tools").append(state, keyButton, theme);
  return state;
}

async function watch(state) {
  let wake = () => {};
  let away = false;
  document.addEventListener("visibilitychange", () => wake());
  document.addEventListener("server-away", () => away || wake());
  const known = { ready: "ready", away: "not reached" };
  for (;;) {
    if (!document.hidden) {
      const now = await readiness();
      if (away !== (now === "away")) banner(now === "away" ? "The server cannot be reached. The page goes on as soon as it answers." : "");
      if (away && now !== "away") open.get(current).panel.shown?.();
      away = now === "away";
      state.dataset.state = now === "ready" || now === "away" ? now : "busy";
      write(state.lastElementChild, known[now] ?? now);
      if (now !== "away" && !models.list.length) await load();
    }
    await new Promise((go) => {
      wake = go;
      setTimeout(go, (away ? AWAY : CHECK) * 1000);
    });
  }
}

/** A line below the top for what concerns the whole page; without words there is none. */
function banner(words, action = null) {
  const line = document.getElementById("banner");
  line.hidden = !words;
  line.replaceChildren(el("span", {}, words), ...(action ? [action] : []));
}

function keyMissing() {
  banner("This server wants an API key.", el("button", { type: "button", onclick: changeKey }, "Enter the key"));
}

async function load() {
  try {
    await models.refresh();
  } catch (error) {
    if (error.status !== 0 && error.status !== 401) say(told(error)); // of those the line below the top tells
  }
}

/** The window that asks for the key. It stays in the page: with it would go the caret of the field below it. */
function makeAsking() {
  const why = el("p", { class: "soft" });
  // no type=password: the browser would offer to keep it, and the key shall end with the window
  const input = el("input", { type: "text", class: "secret", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title" },
    el("form", { method: "dialog" },
      el("h2", { id: "ask-title" }, "API key"),
      why,
      field("Key", input, { hint: "It is kept until this window is closed, and sent to this server alone." }),
      el("div", { class: "actions" },
        el("button", { class: "strong", value: "use" }, "Use it"),
        el("button", { value: "none" }, "Not now"))));
  document.body.append(dialog);
  /** Resolves with the key, or with null. */
  return (words) => {
    write(why, words);
    input.value = "";
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((go) => {
      dialog.addEventListener("close", () => {
        const given = dialog.returnValue === "use" ? input.value.trim() : null;
        input.value = "";
        go(given);
      }, { once: true });
    });
  };
}

async function changeKey() {
  const given = await keyAsked(key() ? "Another key, or an empty field to forget the one there is." : "Leave it empty where the server wants none.");
  if (given === null) return;
  setKey(given);
  banner("");
  say(given ? "The key is used from now on." : "No key is used.");
  await load();
  open.get(current).panel.shown?.();
}

build();
const keyAsked = makeAsking();
onKeyWanted(async (why) => (await keyAsked(why)) || null);
document.addEventListener("key-declined", keyMissing);
addEventListener("hashchange", fromHash);
addEventListener("popstate", fromHash);
fromHash();
watch(tools());
