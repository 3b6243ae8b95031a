// What somebody writes: kept as they write it, and theirs and yours field by field when somebody else was first.

import { html, useEffect, useRef, useState } from "./html.js";
import { keep, kept } from "./kept.js";
import { me } from "./session.js";

const nameHere = () => `draft ${me.value?.user_id} ${location.pathname}`;

/** Whether two forms have the same fields, with a text in each. */
const alike = (one, other) => Object.keys({ ...one, ...other }).every((name) => typeof one[name] === "string" && typeof other[name] === "string");

/** What was written here before; null if that is nothing, or of no use, as another version of the page may have kept it. */
function found(name, loaded, written) {
  try {
    const { base, form, theirs } = kept(name);
    const now = written(loaded);
    const fits = base.id === loaded.id && typeof base.version === typeof loaded.version && alike(written(base), now) && alike(form, now);
    const isWritten = Object.keys(now).some((field) => form[field] !== now[field]);
    if (fits && isWritten && (theirs === null || theirs.every((field) => field in now))) return { base, form, theirs };
  } catch {} // it is no draft at all
  keep(name, null);
  return null;
}

/** Forget what was written at this address. */
export const dropDraft = () => keep(nameHere(), null);

/**
 * A form that begins with a thing, as `written(thing)` has its fields: each a text. What is written is kept in this tab
 * at once, and is there `again` when whoever wrote it comes back to this address.
 *
 * `base` is the thing that the form stands on, `touched` names what was written, `theirs` what somebody else changed
 * once a save met it (or null), `told` says how it is. `made`: what is told of a thing that was just made.
 */
export function useDraft(loaded, written, made = "") {
  const [name] = useState(nameHere);
  const [state, show] = useState(() => {
    const before = found(name, loaded, written);
    return before ? { ...before, again: true } : { base: loaded, form: written(loaded), theirs: null, again: false };
  });
  const { base, form, theirs, again } = state;
  const [told, tell] = useState(() => (!again && new URL(location.href).searchParams.has("new") ? made : ""));
  const latest = useRef(state);
  const before = written(base);
  const names = Object.keys(before);
  const set = (how) => {
    const next = how(latest.current);
    const start = written(next.base);
    const isWritten = names.some((field) => next.form[field] !== start[field]);
    latest.current = { ...next, again: next.again && isWritten };
    keep(name, isWritten ? next : null);
    show(latest.current);
  };
  /** Stand on a newer one, which replaces what is as it `was`. */
  const take = (next, was = before, parts = {}) => {
    const after = written(next);
    const merged = (mine) => Object.fromEntries(names.map((field) => [field, mine[field] === was[field] ? after[field] : mine[field]]));
    set((now) => ({ ...now, base: next, form: merged(now.form), ...parts }));
  };
  return {
    base,
    form,
    theirs,
    again,
    told,
    tell,
    touched: names.filter((field) => form[field] !== before[field]),
    change: (field, value) => {
      tell("");
      set((now) => ({ ...now, form: { ...now.form, [field]: value } }));
    },
    take,
    /** It was saved: what was written since stays. */
    saved: (next) => {
      take(next, form, { theirs: null });
      tell("Saved.");
    },
    /** Somebody else was first. */
    meet: (next) => take(next, before, { theirs: names.filter((field) => before[field] !== written(next)[field]) }),
    /** Stand on the newest one, without anything that was written. */
    afresh: (say = "") => {
      const newest = base.version > loaded.version ? base : loaded;
      set(() => ({ base: newest, form: written(newest), theirs: null, again: false }));
      tell(say);
    },
    /** It is shown for as long as this is open, and not kept any more. */
    drop: () => keep(name, null),
  };
}

/** What the fields of a draft's form are made of. `save` is given the fields whose browser makes nothing of what is in them. */
export function useFields({ draft: { form, change }, labels, problem, save }) {
  const shown = useRef(null);
  const fields = problem?.fields ?? {};
  const known = Object.keys(fields).some((name) => name in form);
  useEffect(() => {
    if (known) shown.current.querySelector("[aria-invalid]")?.focus();
  }, [problem]);
  return {
    fields,
    elsewhere: known ? null : problem,
    whole: {
      ref: shown,
      novalidate: true,
      onSubmit: (event) => {
        event.preventDefault();
        save([...event.target.elements].filter(({ validity }) => validity?.badInput).map(({ name }) => name));
      },
    },
    at: (name) => ({
      name,
      label: labels[name],
      value: form[name],
      problem: fields[name],
      autocomplete: "off",
      onInput: (event) => change(name, event.target.value),
    }),
  };
}

/** That what is in a form was written before, and the way back from it. `clear` forgets what was wrong with it. */
export function Again({ draft, clear }) {
  if (!draft.again) return null;
  const afresh = (event) => {
    clear();
    draft.afresh();
    event.target.form.querySelector("input").focus(); // what was pressed is gone
  };
  return html`<p class="quiet" role="status">What you wrote before is here again. <button type="button" class="quiet small" onClick=${afresh}>Start afresh</button></p>`;
}

/** What somebody else changed, beside what is in the form. `say(value, name)` shows the value of a field. */
export function Conflict({ draft, written, labels, say = (value) => value || "nothing", clear }) {
  const { base, form, theirs } = draft;
  const shown = useRef(null);
  useEffect(() => shown.current?.focus(), [theirs]);
  if (!theirs) return null;
  const after = written(base);
  const names = Object.keys(labels).filter((name) => theirs.includes(name) || form[name] !== after[name]);
  const differ = names.some((name) => form[name] !== after[name]);
  const keepTheirs = () => {
    clear();
    draft.afresh("Theirs is kept.");
  };
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
    <button type="button" class="quiet" onClick=${keepTheirs}>Keep theirs</button>
  </section>`;
}
