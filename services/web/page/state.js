// A state as a tree; what an event changed of it is open, and says so.

import { html, useState } from "./html.js";
import { short } from "./events.js";
import { number } from "./words.js";

const FEW = 40; // values; so many are all open
export const ENTRIES = 200; // of a part of the state that are asked for: a book may have 100,000 orders
const MOST = 50; // entries that are shown of one part at first

const isPart = (value) => value !== null && typeof value === "object";
const entriesOf = (value) => (Array.isArray(value) ? value.map((each, at) => [String(at), each]) : Object.entries(value));

/** How many values there are, up to a number. */
function count(value, most) {
  if (!isPart(value)) return 1;
  let found = 1;
  for (const [, part] of entriesOf(value)) {
    if (found > most) break;
    found += count(part, most - found);
  }
  return found;
}

/** `leftOut`: how many entries of a part the server has left out, by its name. */
export function State({ state, changes, leftOut = {} }) {
  if (!isPart(state)) return html`<p><code data-path="">${state === null ? "none" : JSON.stringify(state)}</code></p>`;
  const touched = changes.map(({ path, ...change }) => ({ path: path.replace(/\[\]$/, ""), isNew: !("before" in change) }));
  return html`<${Entries} value=${state} path="" touched=${touched} open=${count(state, FEW) <= FEW} />
    ${Object.entries(leftOut).map(([name, left]) => html`<p class="quiet">${number(left)} more ${name} are not shown; what this event names is.</p>`)}`;
}

const within = (path, part) => path === part || path.startsWith(`${part}.`);

function Entries({ value, path, touched, open }) {
  const [shown, setShown] = useState(MOST);
  const all = entriesOf(value).map(([name, part]) => ({ name, part, path: path ? `${path}.${name}` : name }));
  if (!all.length) return html`<span class="quiet" data-path=${path}>empty</span>`;
  const mine = all.length > shown ? all.filter((each) => touched.some((change) => within(change.path, each.path))) : [];
  const rest = mine.length ? all.filter((each) => !mine.includes(each)) : all;
  return html`<ul class="state">
      ${[...mine, ...rest.slice(0, shown)].map((each) => html`<${Entry} key=${each.name} ...${each} touched=${touched} open=${open} />`)}
    </ul>
    ${rest.length > shown && html`<button type="button" class="quiet small" onClick=${() => setShown(shown + 10 * MOST)}>
      Show more of ${number(all.length)}</button>`}`;
}

function Entry({ name, part, path, touched, open }) {
  const change = touched.find((each) => each.path === path);
  const mark = change && html` <span class="mark">${change.isNew ? "added" : "changed"}</span>`;
  if (!isPart(part)) return html`<li class=${change ? "touched" : ""}><b title=${name}>${short(name)}</b> <code data-path=${path}>${JSON.stringify(part)}</code>${mark}</li>`;
  const isTouched = touched.some((each) => within(each.path, path));
  return html`<li class=${change ? "touched" : ""}><${Part} name=${name} part=${part} path=${path} touched=${touched} mark=${mark} open=${open} now=${open || isTouched} /></li>`;
}

/** What is inside is made when it is opened: a book has thousands of orders. */
function Part({ name, part, path, touched, mark, open, now }) {
  const [wanted, setWanted] = useState(null); // what somebody has said about it
  const isOpen = wanted ?? now;
  return html`<details open=${isOpen}>
    <summary onClick=${(event) => (event.preventDefault(), setWanted(!isOpen))}><b title=${name}>${short(name)}</b> <span class="quiet">${number(entriesOf(part).length)}</span>${mark}</summary>
    ${isOpen && html`<${Entries} value=${part} path=${path} touched=${touched} open=${open} />`}
  </details>`;
}
