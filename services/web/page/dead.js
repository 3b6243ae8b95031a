// What listeners gave up on, and what is done about it: heard once more, corrected, or dropped.

import { html, useEffect, useRef, useState } from "./html.js";
import { Deed, For, More, Nothing, Sure, Told, Trouble, Waiting } from "./parts.js";
import { ask, Problem, withQuery } from "./ask.js";
import { useData, useDeed, usePages, useWatch } from "./data.js";
import { useStore } from "./store.js";
import { place, setParameter } from "./way.js";
import { exactly, moment, number, plural } from "./words.js";

const DOOR = "/api/events/dead";
const HERE = "/system/dead";
const LONGEST = 200; // characters of an error that may be looked for
const STATES = [["open", "open"], ["done", "mended"], ["dropped", "dropped"], ["any", "any"]];
const named = Object.fromEntries(STATES);

export default function Dead() {
  return html`<p><a href="/system">‹ System</a></p>
    <h1>Dead letters</h1>
    <${For} role="operator" why="Log in as an operator to see what was given up on."><${Letters} /><//>`;
}

function Letters() {
  const url = useStore(place);
  const opened = useRef(url.href);
  const { listener, error, letter, state = "open" } = Object.fromEntries(url.searchParams);
  const moved = opened.current !== url.href; // then the link that was followed is gone, and the focus with it
  if (letter) return html`<${Letter} key=${letter} number=${letter} state=${state} moved=${moved} />`;
  if (listener && error) return html`<${Group} key=${`${listener} ${error}`} listener=${listener} error=${error} state=${state} moved=${moved} />`;
  return html`<${Groups} key=${listener} listener=${listener} state=${state} moved=${moved} />`;
}

/** A heading that takes the focus when it comes in place of what had it. */
function Heading({ moved, children }) {
  const heading = useRef(null);
  useEffect(() => {
    if (moved && (document.activeElement === document.body || !document.activeElement)) heading.current.focus();
  }, []);
  return html`<h2 tabindex="-1" class="outset" ref=${heading}>${children}</h2>`;
}

const asState = (state) => (state === "any" ? undefined : state);

function Choice({ state }) {
  return html`<search>
    <label for="state">State</label>
    <select id="state" value=${state} onChange=${(event) => setParameter("state", event.target.value === "open" ? "" : event.target.value)}>
      ${STATES.map(([value, name]) => html`<option key=${value} value=${value} selected=${value === state}>${name}</option>`)}
    </select>
  </search>`;
}

function Groups({ listener, state, moved }) {
  const { data: groups, problem, again } = useWatch(withQuery(`${DOOR}/groups`, { listener, state: asState(state), limit: 1000 }), { every: 5_000 });
  const shown = (group) => withQuery(HERE, { listener: group.listener, error: group.error.slice(0, LONGEST) || " ", state: state === "open" ? "" : state });
  return html`<${Choice} state=${state} />
    <${Heading} moved=${moved}>${listener ? `Given up on by ${listener}` : "By listener and error"}<//>
    ${listener && html`<p><a href=${withQuery(HERE, { state: state === "open" ? "" : state })}>Show all listeners</a></p>`}
    <${Trouble} problem=${problem} again=${again} />
    ${!groups && !problem && html`<${Waiting} />`}
    ${groups?.length === 0 &&
    html`<${Nothing} title=${state === "open" ? "Nothing waits to be mended" : `No dead letters here are ${named[state]}`}>
      <p>An event that a listener cannot do its deed for, however often it tries, comes here. See <a href="/system">how the system is</a>.</p>
    <//>`}
    <ul class="rows">
      ${groups?.map(
        (group) => html`<li key=${`${group.listener} ${group.error}`}>
          <a href=${shown(group)}>
            <strong>${group.listener}</strong>
            <span>${group.error || "No error is told."}</span>
            <span class="facts">${plural(group.count, "letter")}, the last one ${moment(group.last)}</span>
          </a>
        </li>`,
      )}
    </ul>`;
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Have one letter heard once more; whoever asks too often waits. Throws a Problem. */
async function retry(letter, gone = () => false) {
  for (;;) {
    try {
      return await ask(`${DOOR}/${letter}/retry`, { method: "POST" });
    } catch (problem) {
      if (problem.status !== 429 || gone()) throw problem;
      await pause(Number(problem.told.retry_after) || 1);
    }
  }
}

/** The numbers of all open letters of a group, oldest first. */
async function openOf(listener, error) {
  const numbers = [];
  for (let cursor = ""; cursor !== null; ) {
    const page = await ask(withQuery(DOOR, { listener, error: error.trim(), state: "open", limit: 1000, cursor }));
    numbers.push(...page.items.map((letter) => letter.number));
    cursor = page.next_cursor;
  }
  return numbers.reverse();
}

function Group({ listener, error, state, moved }) {
  const pages = usePages(withQuery(DOOR, { listener, error: error.trim(), state: asState(state) }));
  const [told, setTold] = useState("");
  const gone = useRef(false);
  useEffect(() => () => (gone.current = true), []);
  const [retryAll, busy, problem] = useDeed(async () => {
    const numbers = await openOf(listener, error);
    let [done, failed, why] = [0, 0, ""];
    for (const letter of numbers) {
      if (gone.current) return;
      setTold(`${number(done + failed)} of ${plural(numbers.length, "letter")} heard once more…`);
      try {
        await retry(letter, () => gone.current);
        done += 1;
      } catch (problem) {
        if (!(problem instanceof Problem) || problem.status === 0 || problem.status === 401 || problem.status === 403) throw problem;
        failed += 1;
        why = problem.message;
      }
    }
    setTold(`${plural(done, "letter")} mended${failed ? `, ${number(failed)} not. The last one: ${why}` : "."}`);
    pages.again();
  });
  const link = (letter) => withQuery(HERE, { letter: letter.number, listener, error, state: state === "open" ? "" : state });
  const open = pages.items?.some((letter) => letter.state === "open");
  return html`<p><a href=${withQuery(HERE, { state: state === "open" ? "" : state })}>‹ All dead letters</a></p>
    <${Choice} state=${state} />
    <${Heading} moved=${moved}>${listener}<//>
    <p class="error-text">${error}</p>
    <${Trouble} problem=${pages.problem} again=${pages.again} />
    ${!pages.items && !pages.problem && html`<${Waiting} />`}
    ${(open || busy) && html`<${Deed} class="group-deed" busy=${busy} onClick=${retryAll}>Retry all that are open<//>`}
    <${Trouble} problem=${problem} />
    <${Told}>${told}<//>
    ${pages.items?.length === 0 && html`<${Nothing} title=${`None of these is ${named[state]}`}><p><a href=${HERE}>All dead letters</a></p><//>`}
    <ul class="rows">
      ${pages.items?.map(
        (letter) => html`<li key=${letter.number}>
          <a href=${link(letter)}>
            <strong>Letter ${number(letter.number)}</strong>
            <span>${letter.type || "unknown type"} <span class="facts">${letter.subject}</span></span>
            <span class="facts">${exactly(letter.died_at)}, ${named[letter.state]}${letter.edited ? ", corrected" : ""}${letter.retries ? `, retried ${plural(letter.retries, "time")}` : ""}</span>
          </a>
        </li>`,
      )}
    </ul>
    <${More} pages=${pages} />`;
}

const pretty = (payload) => (typeof payload === "string" ? payload : JSON.stringify(payload, null, 2));

function Letter({ number: which, state, moved }) {
  const { data: letter, problem, again } = useData(`${DOOR}/${encodeURIComponent(which)}`);
  const url = useStore(place);
  const back = withQuery(HERE, { listener: url.searchParams.get("listener"), error: url.searchParams.get("error"), state: state === "open" ? "" : state });
  return html`<p><a href=${back}>‹ Back to the list</a></p>
    <${Heading} moved=${moved}>Letter ${which}<//>
    ${!letter && (problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`)}
    ${letter && html`<${Facts} letter=${letter} /><${Mending} letter=${letter} again=${again} /><${Trouble} problem=${problem} again=${again} /><${Payload} letter=${letter} /><${Actions} actions=${letter.actions} />`}`;
}

function Facts({ letter }) {
  return html`<p class="error-text">${letter.error}</p>
    <dl class="facts">
      <div><dt>State</dt><dd>${named[letter.state]}</dd></div>
      <div><dt>Listener</dt><dd>${letter.listener}</dd></div>
      <div><dt>Event</dt><dd>${letter.type || "unknown type"}</dd></div>
      <div><dt>Place</dt><dd>${letter.stream} ${number(letter.sequence)}, ${letter.subject}</dd></div>
      <div><dt>Tried</dt><dd>${plural(letter.attempts, "time")}, then given up ${exactly(letter.died_at)}</dd></div>
      <div><dt>Appended</dt><dd>${exactly(letter.appended_at)}</dd></div>
    </dl>
    ${letter.retry_error && letter.state === "open" && html`<p class="wrong">The last retry failed: ${letter.retry_error}</p>`}
    ${letter.correlation_id && html`<p><a href="/time/trace/${encodeURIComponent(letter.correlation_id)}">What led to it, and what came of it</a></p>`}`;
}

/** What can be done about a letter that is open. */
function Mending({ letter, again }) {
  const [editing, setEditing] = useState(false);
  const [told, setTold] = useState("");
  const outcome = useRef(null);
  const buttons = useRef(null);
  useEffect(() => {
    if (told) outcome.current.focus();
  }, [told]);
  const settle = async (text) => {
    setEditing(false);
    setTold(text);
    await again();
  };
  const [retryNow, retrying, refused] = useDeed(async () => {
    setTold("");
    try {
      await retry(letter.number);
    } catch (problem) {
      again(); // what failed is recorded
      throw problem;
    }
    await settle(`Mended: ${letter.listener} has heard it.`);
  });
  const drop = async () => {
    await ask(`${DOOR}/${letter.number}/drop`, { method: "POST" });
    await settle("Dropped: nothing more is done about it.");
  };
  const close = () => {
    setEditing(false);
    requestAnimationFrame(() => buttons.current?.querySelector("button")?.focus());
  };
  return html`<p class="outcome ${told ? "complete" : ""}" role="status" tabindex="-1" ref=${outcome} hidden=${!told}>${told}</p>
    ${letter.state === "open" &&
    !editing &&
    html`<p class="choices" ref=${buttons}>
        <${Deed} busy=${retrying} onClick=${retryNow}>Retry<//>
        <button type="button" class="quiet" onClick=${() => setEditing(true)}>Edit and retry</button>
      </p>
      <${Trouble} problem=${refused} />
      <${Sure} name="Drop" question="Drop letter ${letter.number}?" yes="Drop it for good" no="Keep it" deed=${drop}>
        ${letter.listener} will never do its deed for this event. The letter stays in the log, and this cannot be undone.
      <//>`}
    ${letter.state === "open" && editing && html`<${Editor} letter=${letter} done=${settle} close=${close} again=${again} />`}`;
}

/** Where in a text its JSON breaks, as far as the browser tells: `[message, position]`. */
function whyNotJson(text, error) {
  const [, position] = /position (\d+)/.exec(error.message) ?? [];
  if (position === undefined) return [`This is not JSON: ${error.message}`, text.length];
  const lines = text.slice(0, Number(position)).split("\n");
  return [`This is not JSON: line ${lines.length}, column ${lines.at(-1).length + 1}: ${error.message.replace(/ in JSON at position.*/, "")}`, Number(position)];
}

function Editor({ letter, done, close, again }) {
  const [text, setText] = useState(() => pretty(letter.correction ?? letter.payload));
  const [wrong, setWrong] = useState("");
  const area = useRef(null);
  useEffect(() => area.current.focus(), []);
  const [save, busy, refused, clear] = useDeed(async () => {
    setWrong("");
    let json;
    try {
      json = JSON.parse(text);
    } catch (error) {
      const [message, position] = whyNotJson(text, error);
      setWrong(message);
      area.current.focus();
      area.current.setSelectionRange(position, position);
      return;
    }
    if (typeof json !== "object" || json === null || Array.isArray(json)) return setWrong("An event is a JSON object: { … }.");
    await ask(`${DOOR}/${letter.number}/body`, { method: "PUT", json });
    try {
      await retry(letter.number);
    } catch (problem) {
      again();
      throw problem;
    }
    await done(`Mended: ${letter.listener} has heard it as you corrected it.`);
  });
  const submit = (event) => {
    event.preventDefault();
    save();
  };
  return html`<form class="editor" onSubmit=${submit} aria-label="Edit and retry">
    <div class="field">
      <label for="payload">Payload, as it should be</label>
      <textarea id="payload" ref=${area} rows=${Math.min(24, text.split("\n").length + 2)} spellcheck=${false} value=${text} aria-invalid=${wrong ? "true" : undefined}
        aria-describedby="payload-hint payload-wrong" onInput=${(event) => (setText(event.target.value), setWrong(""), clear())}></textarea>
      <small id="payload-hint">A whole event of type ${letter.type}. What it was stays beside it in the log.</small>
      <small class="wrong" id="payload-wrong" role="alert">${wrong}</small>
    </div>
    <${Trouble} problem=${refused} />
    <p class="choices">
      <${Deed} type="submit" busy=${busy}>Save and retry<//>
      <button type="button" class="quiet" onClick=${close}>Cancel</button>
    </p>
  </form>`;
}

function Payload({ letter }) {
  return html`${letter.correction !== null && html`<h2>Corrected payload</h2><pre class="code">${pretty(letter.correction)}</pre>`}
    <h2>Payload</h2>
    <pre class="code">${pretty(letter.payload)}</pre>
    <details>
      <summary>Headers</summary>
      <dl class="facts">${Object.entries(letter.headers).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    </details>`;
}

const DEEDS = { redelivered: "retried it", edited: "corrected it", dropped: "dropped it" };

function Actions({ actions }) {
  if (!actions.length) return null;
  return html`<h2>What was done about it</h2>
    <ol>
      ${actions.map((each, place) => html`<li key=${place}>${exactly(each.at)}: ${each.by} ${DEEDS[each.what]}${each.error ? `, which failed: ${each.error}` : "."}</li>`)}
    </ol>`;
}
