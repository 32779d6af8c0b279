// Building and updating elements. Text goes in as text, never as markup.

/**
 * An element.
 *
 * given: attributes by name; `class`; `on...` a listener. true is an attribute without a value; false, null and
 * undefined leave it out. children: nodes, strings, lists of them; null and false are left out.
 */
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Set an element's text only where it differs, so that nothing is read aloud or laid out twice. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make a parent's children match a list, keeping the elements that stay, so that focus and scroll stay too.
 *
 * key: item -> string. make: item -> element. update: (element, item).
 */
export function match(parent, items, key, make, update = () => {}) {
  const there = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let before = null;
  for (const item of items) {
    const name = key(item);
    let node = there.get(name);
    there.delete(name);
    if (!node) {
      node = make(item);
      node.dataset.key = name;
    }
    update(node, item);
    const next = before ? before.nextElementSibling : parent.firstElementChild;
    if (next !== node) parent.insertBefore(node, next);
    before = node;
  }
  for (const node of there.values()) node.remove();
}

let ids = 0;

/** A new id for a label or a description to point at. */
export function newId(stem) {
  ids += 1;
  return `${stem}-${ids}`;
}

/** A label above its field; hint: a short line below it. */
export function field(label, input, { hint, className = "" } = {}) {
  input.id ||= newId("field");
  const under = hint ? el("span", { class: "hint", id: `${input.id}-hint` }, hint) : null;
  if (under) input.setAttribute("aria-describedby", under.id);
  return el("div", { class: `field ${className}` }, el("label", { for: input.id }, label), input, under);
}

/** A tick box with its label beside it. */
export function tick(label, checked, changed = () => {}) {
  const input = el("input", { type: "checkbox", checked, onchange: () => changed(input.checked) });
  return { input, node: el("label", { class: "tick" }, input, label) };
}

/** Put these words and values into a <select>, keeping what is chosen where it is still there. */
export function fill(select, options, wanted = select.value) {
  select.replaceChildren(...options.map(([value, label]) => el("option", { value }, label)));
  if (options.some(([value]) => value === wanted)) select.value = wanted;
}

/** Text to the clipboard; also over plain HTTP, where browsers offer no navigator.clipboard. */
export async function copy(text) {
  if (navigator.clipboard && isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = el("textarea", { class: "offscreen", "aria-hidden": "true" });
  area.value = text;
  const place = document.querySelector("dialog[open]") ?? document.body; // outside an open dialog nothing has focus
  const focused = document.activeElement;
  place.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!done) throw new Error("The browser does not allow copying.");
}

/** Offer bytes that the page has as a file. */
export function save(address, name) {
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
