// What somebody writes on a thing that others may change meanwhile: theirs and yours, field by field.

import { html, useEffect, useRef, useState } from "./html.js";
import { me } from "./session.js";

const kept = new Map(); // what people were writing when their login ended, by whom and where

/** A state that whoever is logged in finds again, if their login ends while it is shown and they log in once more. */
export function useKept(initial) {
  const [key] = useState(() => `${me.value?.user_id} ${location.pathname}`);
  const [value, set] = useState(() => kept.get(key) ?? initial());
  const latest = useRef();
  latest.current = value;
  useEffect(() => {
    kept.delete(key);
    return () => me.value === null && kept.set(key, latest.current);
  }, []);
  return [value, set];
}

/**
 * A form that begins with a thing, as `written(thing)` has its fields.
 *
 * `base` is the thing that the form stands on, `touched` names what was written, `theirs` what somebody else changed
 * once a save met it (or null).
 */
export function useDraft(loaded, written) {
  const [{ base, form, theirs }, set] = useKept(() => ({ base: loaded, form: written(loaded), theirs: null }));
  const before = written(base);
  const names = Object.keys(before);
  /** Stand on a newer one, which replaces what is as it `was`. */
  const take = (next, was = before, parts = {}) => {
    const after = written(next);
    const merged = (mine) => Object.fromEntries(names.map((name) => [name, mine[name] === was[name] ? after[name] : mine[name]]));
    set((now) => ({ ...now, base: next, form: merged(now.form), ...parts }));
  };
  return {
    base,
    form,
    theirs,
    touched: names.filter((name) => form[name] !== before[name]),
    change: (how) => set((now) => ({ ...now, form: how(now.form) })),
    take,
    /** It was saved: what was written since stays. */
    saved: (next) => take(next, form, { theirs: null }),
    /** Somebody else was first. */
    meet: (next) => take(next, before, { theirs: names.filter((name) => before[name] !== written(next)[name]) }),
    keepTheirs: () => set({ base, form: before, theirs: null }),
  };
}

/** What somebody else changed, beside what is in the form. `say(value, name)` shows the value of a field. */
export function Conflict({ draft, written, labels, say = (value) => value || "nothing", keep }) {
  const { base, form, theirs } = draft;
  const shown = useRef(null);
  useEffect(() => shown.current?.focus(), [theirs]);
  if (!theirs) return null;
  const after = written(base);
  const names = Object.keys(labels).filter((name) => theirs.includes(name) || form[name] !== after[name]);
  const differ = names.some((name) => form[name] !== after[name]);
  return html`<section class="conflict" tabindex="-1" ref=${shown} aria-labelledby="conflict">
    <h2 id="conflict">Somebody else changed it meanwhile</h2>
    <p>Nothing of yours is saved yet, and nothing is lost.
      ${differ ? " Change what you like below, and save yours on top; or keep theirs." : " It reads as you want it already."}</p>
    <dl>
      ${names.map(
        (name) => html`<div key=${name}>
          <dt>${labels[name]}</dt>
          <dd><span class="quiet">Theirs</span> ${say(after[name], name)}</dd>
          <dd><span class="quiet">Yours</span> ${form[name] === after[name] ? html`<span class="quiet">as theirs</span>` : html`<strong>${say(form[name], name)}</strong>`}</dd>
        </div>`,
      )}
    </dl>
    <button type="button" class="quiet" onClick=${keep}>Keep theirs</button>
  </section>`;
}
