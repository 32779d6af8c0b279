// Panel: all pictures that this client's jobs drew and the server still has.

import { get } from "./api.js";
import { el, match, tick, write } from "./dom.js";
import { icon } from "./icons.js";
import { jobs } from "./jobs.js";
import { say } from "./say.js";
import { isGone, nameOf, shotsOf, show } from "./shots.js";
import { Viewer } from "./viewer.js";
import { count, told } from "./words.js";

const KEY = "vitrify-hidden";
const LIMITS = [60, 200, 500]; // jobs that are asked for, more with each press

function make(app) {
  let shots = []; // newest first
  let limit = 0;
  let more = false;
  let stale = true;
  let hidden = readHidden();
  let viewer = null;

  const search = el("input", { type: "search", placeholder: "Search the prompts", "aria-label": "Search the prompts", hidden: true, oninput: () => paint() });
  const all = tick("Show hidden ones", false, () => paint());
  const status = el("p", { class: "soft", role: "status" });
  all.node.hidden = true;
  const grid = el("ul", { class: "grid", "aria-label": "Pictures", onkeydown: keys });
  const empty = el("div", { class: "empty tall", hidden: true }, icon("picture"),
    el("p", {}, "What you draw is kept here, with its settings."), el("button", { type: "button", class: "strong", onclick: () => app.go("generate") }, "Draw one"));
  const nothing = el("p", { class: "empty small", hidden: true }, "No picture has these words.");
  const failed = el("p", { class: "empty small", hidden: true });
  const next = el("button", { type: "button", class: "wide", hidden: true, onclick: () => refresh(limit + 1) }, "Show older ones");
  const node = el("div", { class: "gallery" }, el("div", { class: "bar" }, search, all.node, status), failed, empty, nothing, grid, next);

  // only what is near the window is fetched
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      fetchInto(target);
    }
  }, { rootMargin: "400px" });

  async function fetchInto(image) {
    const error = await show(image, image.shot);
    if (error && isGone(error)) refresh(); // it expired since the list was made
    else if (error) near.observe(image); // once more, when it comes into view again
  }

  jobs.addEventListener("ended", ({ detail: job }) => {
    if (job.status !== "succeeded" || !job.pictures) return;
    stale = true;
    if (!node.closest("[hidden]")) refresh();
  });

  async function refresh(step = limit) {
    limit = Math.min(step, LIMITS.length - 1);
    stale = false;
    try {
      const { jobs: listed } = await get(`v1/jobs?limit=${LIMITS[limit]}`);
      shots = listed.filter((job) => job.status === "succeeded").flatMap(shotsOf);
      more = listed.length === LIMITS[limit] && limit < LIMITS.length - 1;
      paint();
    } catch (error) {
      stale = true;
      if (shots.length) say(told(error));
      write(failed, told(error));
      failed.hidden = shots.length > 0;
      empty.hidden = true;
    }
  }

  function seen() {
    const wanted = search.value.trim().toLowerCase();
    return shots.filter((shot) => (all.input.checked || !hidden.has(shot.path)) && nameOf(shot).toLowerCase().includes(wanted));
  }

  function paint() {
    const shown = seen();
    match(grid, shown, (shot) => shot.path, tile, mark);
    empty.hidden = shots.length > 0;
    next.hidden = !more;
    const away = shots.filter((shot) => hidden.has(shot.path)).length;
    all.node.hidden = !away && !all.input.checked;
    search.hidden = !shots.length;
    failed.hidden = true;
    nothing.hidden = shown.length > 0 || !shots.length;
    write(status, shots.length ? `${count(shown.length, "picture")}${away ? `, ${away} hidden` : ""}` : "");
    rove(grid.querySelector("[tabindex='0']") ?? grid.querySelector("button"));
  }

  function tile(shot) {
    const image = el("img", { alt: "", decoding: "async" });
    image.shot = shot;
    near.observe(image);
    const label = `${nameOf(shot)}, enlarge`;
    const button = el("button", { type: "button", class: "tile", tabindex: -1, "aria-label": label, title: nameOf(shot), onclick: () => enlarge(shot) }, image);
    const back = el("button", { type: "button", class: "back", hidden: true, onclick: () => keep(shot) }, "Show again");
    return el("li", {}, button, el("p", { class: "caption", "aria-hidden": "true" }, nameOf(shot)), back);
  }

  function mark(node, shot) {
    node.classList.toggle("hides", hidden.has(shot.path));
    node.querySelector(".back").hidden = !hidden.has(shot.path);
  }

  function enlarge(shot) {
    viewer ??= new Viewer({ takers: app.takers(), hide });
    const shown = seen();
    viewer.open(shown, shown.findIndex((one) => one.path === shot.path), (last) => {
      const item = [...grid.children].find((one) => one.dataset.key === last.path);
      const button = item?.querySelector(".tile") ?? grid.querySelector(".tile");
      rove(button);
      button?.focus();
    });
  }

  function hide(shot) {
    hidden.add(shot.path);
    kept();
    say("Hidden in this browser. The server removes it in time.");
  }

  function keep(shot) {
    hidden.delete(shot.path);
    kept();
  }

  function kept() {
    try {
      localStorage.setItem(KEY, JSON.stringify([...hidden].slice(-5000)));
    } catch {
      // they are hidden until the page is left
    }
    paint();
  }

  /** One tile is in the order of the Tab key; arrows go to the others. */
  function rove(button) {
    for (const one of grid.querySelectorAll(".tile[tabindex='0']")) one.tabIndex = -1;
    if (button) button.tabIndex = 0;
  }

  function keys(event) {
    if (!event.target.classList.contains("tile") || event.ctrlKey || event.metaKey || event.altKey) return;
    const tiles = [...grid.querySelectorAll(".tile")];
    const across = tiles.filter((one) => one.offsetTop === tiles[0].offsetTop).length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    const at = tiles.indexOf(event.target);
    const to = { Home: 0, End: tiles.length - 1 }[event.key] ?? (by === undefined ? undefined : at + by);
    if (to === undefined) {
      if (event.key === "Delete") {
        const { shot } = event.target.querySelector("img");
        (tiles[at + 1] ?? tiles[at - 1])?.focus();
        rove(document.activeElement.classList.contains("tile") ? document.activeElement : null);
        hide(shot);
      }
      return;
    }
    event.preventDefault();
    if (!tiles[to]) return;
    rove(tiles[to]);
    tiles[to].focus();
  }

  return {
    node,
    shown: () => {
      hidden = readHidden();
      if (stale) refresh();
    },
  };
}

function readHidden() {
  try {
    return new Set(JSON.parse(localStorage.getItem(KEY) ?? "[]"));
  } catch {
    return new Set();
  }
}

export const gallery = { id: "gallery", title: "Gallery", make };
