// How events, ids and moments of the log are shown.

import { html } from "./html.js";
import { withQuery } from "./ask.js";
import { Trouble } from "./parts.js";
import { precisely } from "./words.js";

const UUID = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i;

/** An id as far as people compare it: its end, since ids of one time begin alike. */
export const short = (id) => (UUID.test(id) ? `…${id.slice(-8)}` : id);

/** An id as the log writes it. */
export const asWritten = (id) => (UUID.test(id) ? id.toLowerCase() : id);

/** The address of a history. `subject`: as events have it, such as orders.01a2… */
export function historyOf(subject, at) {
  const [service, id, ...rest] = subject.split(".");
  return withQuery(`/time/${service}/${encodeURIComponent(rest.length || !UUID.test(id) ? subject : id)}`, { at });
}

const DAY = 86_400_000; // ms

/** The address of a trace. An id that tells no time is looked for from a day before `time`. */
export function traceOf(id, time) {
  const tells = UUID.test(id) && id[14] === "7";
  const since = tells || !time ? {} : { since: new Date(Date.parse(time) - DAY).toISOString(), within: 2 * (DAY / 1000) };
  return withQuery(`/time/trace/${encodeURIComponent(id)}`, since);
}

/** A type of event in words. */
export const named = (type) => (type || "unknown").replaceAll("_", " ");

/** How something ended, as far as its type says. */
export const ending = (type) =>
  /cancelled|refused|withdrawn/.test(type) ? "warn" : /failed|given_up/.test(type) ? "bad" : /completed/.test(type) ? "good" : "";

export function Time({ of }) {
  return html`<time datetime=${of} title=${of}>${precisely(of)}</time>`;
}

/** Why something of the log is not shown. What is asked once more only where that may help. */
export function Refused({ problem, again }) {
  if (!problem) return null;
  const { status, told, fields, message } = problem;
  const said = told?.begins ? `It begins on ${precisely(told.begins)}; choose a later moment.` : fields?.id ? "This is no id." : (fields?.service ?? message);
  const passes = !status || status === 429 || status >= 500;
  return html`<${Trouble} problem=${{ message: said }} again=${passes ? again : undefined} />`;
}

/** A value in a line. */
export function said(value) {
  const text = typeof value === "string" ? short(value) : JSON.stringify(value);
  return text.length > 120 ? `${text.slice(0, 119)}…` : text;
}

/** Whom an event names, as the log gives it. */
export const WHO = ["by", "buyer_id", "seller_id", "user_id"];

/** What there is of a ticket, by the service that has it. */
export const PLACES = { tickets: "The ticket, as its seller changed it", orders: "Its order book: every order for it" };
