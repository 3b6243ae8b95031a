// What several views are made of.

import { html, useEffect, useId, useRef, useState } from "./html.js";
import { useData, useDeed } from "./data.js";
import { quietly } from "./notices.js";
import { beDeveloper, may, me } from "./session.js";
import { useStore } from "./store.js";
import { place } from "./way.js";

/** What went wrong, where it did. `again`: what asks once more, which is no use where nothing is. */
export function Trouble({ problem, again }) {
  if (!problem) return null;
  return html`<div class="trouble" role="alert">
    <p>${problem.message}</p>
    ${again && problem.status !== 404 && html`<button type="button" onClick=${() => again()}>Try again</button>`}
  </div>`;
}

/** That something is under way; not shown to whoever waits for a moment only. */
export function Waiting({ what = "Loading" }) {
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), 300);
    return () => clearTimeout(timer);
  }, []);
  return html`<p class="waiting" role="status">${late ? `${what}…` : ""}</p>`;
}

/** That there is nothing yet, and what the next step is. */
export function Nothing({ title, children }) {
  return html`<div class="nothing"><h2>${title}</h2>${children}</div>`;
}

/** A labelled field of a form; of several lines, if it has `rows`. `problem`: what is wrong with what was given. */
export function Field({ label, hint, problem, children, ...input }) {
  const id = useId();
  const told = [hint && `${id}-hint`, problem && `${id}-problem`].filter(Boolean).join(" ");
  const shared = { id, "aria-describedby": told || undefined, "aria-invalid": problem ? "true" : undefined, ...input };
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children ? html`<select ...${shared}>${children}</select>` : html`<${"rows" in input ? "textarea" : "input"} ...${shared} />`}
    ${hint && html`<small id="${id}-hint">${hint}</small>`}
    ${problem && html`<small class="wrong" id="${id}-problem">${problem}</small>`}
  </div>`;
}

/** A button that says while its deed is under way, and cannot be pressed twice. */
export function Deed({ busy, children, ...button }) {
  return html`<button type="button" aria-disabled=${busy ? "true" : undefined} ...${button}>
    ${children}${busy && html`<span class="busy" aria-hidden="true"></span>`}
  </button>`;
}

/** What is done only after a question: a button, whose question takes its place. `yes`, `no`: the answers. */
export function Sure({ name, question, children, yes, no, deed }) {
  const [asking, setAsking] = useState(false);
  const [run, busy, problem, clear] = useDeed(async () => {
    await deed();
    setAsking(false);
  });
  const title = useRef(null);
  const button = useRef(null);
  const asked = useRef(false);
  useEffect(() => {
    if (asking) title.current.focus();
    else if (asked.current && document.activeElement === document.body) button.current.focus(); // what had it is gone
    asked.current = asking;
  }, [asking]);
  const leave = () => {
    clear();
    setAsking(false);
  };
  return html`<section class="apart" aria-label=${name} onKeyDown=${(event) => event.key === "Escape" && asking && leave()}>
    ${asking
      ? html`<h2 tabindex="-1" ref=${title}>${question}</h2>
          <p>${children}</p>
          <div class="choices">
            <${Deed} busy=${busy} onClick=${() => run()}>${yes}<//>
            <button type="button" class="quiet" onClick=${leave}>${no}</button>
          </div>
          <${Trouble} problem=${problem} />`
      : html`<button type="button" class="quiet" ref=${button} onClick=${() => setAsking(true)}>${name}…</button>`}
  </section>`;
}

/** A list that comes in pages, and its button. */
export function More({ pages }) {
  return pages.more && html`<${Deed} class="quiet" busy=${pages.busy} onClick=${pages.more}>More<//>`;
}

/** What is told to whoever cannot see that it changed. */
export function Told({ children }) {
  return html`<p class="told" role="status">${children}</p>`;
}

const ROLES = ["buyer", "seller", "operator"];
const a = (role) => (role === "operator" ? "an operator" : `a ${role}`);

/** How people get in; shown where it is needed. `why`: for what. `role`: what one has to be for it. */
export function Login({ why, done, role = "buyer" }) {
  const found = useData("/api/auth/providers");
  const first = useRef();
  const [enter, busy, refused] = useDeed(async (event) => {
    const given = Object.fromEntries(new FormData(event.target));
    await quietly(() => beDeveloper(given.name, given.role)); // somebody else may be logged in
    await done?.();
  });
  useEffect(() => {
    if (me.value === null) first.current?.focus(); // else there is more to read before it
  }, [found.data]);
  if (!found.data) return found.problem ? html`<${Trouble} problem=${found.problem} />` : html`<${Waiting} />`;
  const { providers, dev } = found.data;
  const next = encodeURIComponent(place.value.pathname + place.value.search);
  const submit = (event) => {
    event.preventDefault();
    enter(event);
  };
  return html`<section class="login" aria-label="Log in">
    <p>${why}</p>
    ${providers.map(
      (name) => html`<a class="button" href="/api/auth/login/${encodeURIComponent(name)}?next=${next}">
        Log in with ${name[0].toUpperCase()}${name.slice(1)}
      </a>`,
    )}
    ${dev &&
    html`<form onSubmit=${submit}>
      <p class="quiet">This system is for development: be whoever you like.</p>
      <div class="field">
        <label for="login-name">Your name</label>
        <input id="login-name" name="name" ref=${first} required maxlength="64" pattern="[A-Za-z0-9_.@\\-]+"
          title="Letters, digits and _ . @ -" autocomplete="username" />
      </div>
      <${Field} label="You are" name="role">
        ${ROLES.map((each) => html`<option value=${each} selected=${each === role}>${a(each)}</option>`)}
      <//>
      <${Trouble} problem=${refused} />
      <${Deed} type="submit" busy=${busy}>Log in<//>
    </form>`}
    ${!dev && !providers.length && html`<p>Nobody can log in here yet: whoever runs this system names a provider.</p>`}
  </section>`;
}

/** What only some may see; others are told how to get there. `role`: buyer, seller or operator. */
export function For({ role = "buyer", why, children }) {
  const who = useStore(me);
  if (who === undefined) return html`<${Waiting} />`;
  if (who === null) return html`<${Login} why=${why} role=${role} />`;
  if (!may(who, role)) {
    return html`<${Nothing} title="This is for ${role}s">
        <p>You are logged in as ${who.name ?? who.user_id}, ${a(who.role)}. An operator can make you ${a(role)}.</p>
      <//>
      <${Login} why="Or log in as somebody else." role=${role} />`;
  }
  return children;
}
