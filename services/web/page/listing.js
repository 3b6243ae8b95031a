// What a seller says about a ticket: put it on sale, change it, withdraw it.

import { html, useEffect, useRef, useState } from "./html.js";
import { Deed, Field, For, Sure, Told, Trouble, Waiting } from "./parts.js";
import { ask, Problem } from "./ask.js";
import { useData, useDeed } from "./data.js";
import { Again, Conflict, useDraft, useFields } from "./draft.js";
import { useEvents } from "./live.js";
import { Sales } from "./sell.js";
import { me } from "./session.js";
import { useStore } from "./store.js";
import { go } from "./way.js";
import { CURRENCIES, digitsOf, local, majorOf, minorOf, moment, money, plural } from "./words.js";

const LABELS = { title: "Title", venue: "Venue", starts_at: "When", price: "Price", quantity: "How many", max_per_order: "Most in one order" };
const NAMES = Object.keys(LABELS);
const EMPTY = { title: "", venue: "", starts_at: "", price: "", currency: "EUR", quantity: "", max_per_order: "10" };
const MOST = 100_000_000; // minor units

export default function Listing({ id }) {
  return html`<p><a href="/sell">‹ What you sell</a></p>
    <${For} role="seller" why="Log in as a seller to put tickets on sale.">
      ${id ? html`<${Change} id=${id} />` : html`<h1>Put a ticket on sale</h1><${New} />`}
    <//>`;
}

/** A ticket as it is written into the form. */
const written = (ticket) => ({
  title: ticket.title,
  venue: ticket.venue ?? "",
  starts_at: ticket.starts_at ? local(ticket.starts_at) : "",
  price: majorOf(ticket.price, ticket.currency),
  currency: ticket.currency,
  quantity: String(ticket.quantity),
  max_per_order: String(ticket.max_per_order),
});

/**
 * What was written, as the server takes it. Throws a Problem that names each field which is wrong.
 *
 * @param {string[]} bad Fields whose browser makes nothing of what is in them.
 */
function read(form, names, bad) {
  const price = minorOf(form.price, form.currency);
  const when = form.starts_at && new Date(form.starts_at);
  const wrong = {
    title: !form.title.trim() && "Say what it is for.",
    starts_at: (bad.includes("starts_at") || (when && isNaN(when))) && "Give the whole day and time, or leave it out.",
    price: (price === undefined && amountHint(form.currency)) || ((price < 1 || price > MOST) && `From ${money(1, form.currency)} to ${money(MOST, form.currency)}.`),
    quantity: !/^\d+$/.test(form.quantity) && "A whole number is needed.",
    max_per_order: !/^\d+$/.test(form.max_per_order) && "A whole number is needed.",
  };
  const errors = names.filter((name) => wrong[name]).map((field) => ({ field, message: wrong[field] }));
  if (errors.length) throw new Problem(422, { detail: "Something is not right yet.", errors });
  const all = {
    title: form.title.trim(),
    venue: form.venue.trim() || null,
    starts_at: when ? when.toISOString() : null,
    price,
    currency: form.currency,
    quantity: Number(form.quantity),
    max_per_order: Number(form.max_per_order),
  };
  return Object.fromEntries(names.map((name) => [name, all[name]]));
}

const amountHint = (currency) =>
  digitsOf(currency) ? `An amount as ${majorOf(2500, currency)}, with ${digitsOf(currency)} digits behind the point at most.` : "A whole amount: this currency has no smaller coins.";

/** What a number of seats comes to, `taken` of which are gone. */
function seatsHint(quantity, taken) {
  if (!/^\d+$/.test(quantity) || Number(quantity) >= taken) return "Seats in all, sold ones included";
  return `${plural(taken, "seat is", "seats are")} sold or reserved already: nothing more is sold.`;
}

function New() {
  const draft = useDraft(EMPTY, (form) => form);
  const [create, busy, problem, clear] = useDeed(async (bad) => {
    const { id } = await ask("/api/tickets", { method: "POST", json: read(draft.form, [...NAMES, "currency"], bad) });
    draft.drop();
    go(`/sell/${id}?new`);
  });
  return html`<${Form} draft=${draft} busy=${busy} problem=${problem} clear=${clear} save=${create} verb="Put it on sale" fresh />`;
}

/** The fields. `fresh`: of a ticket that is not there yet, so that its currency can be chosen. */
function Form({ draft, busy, problem, clear, save, verb, fresh, taken = 0 }) {
  const { form } = draft;
  const { fields, elsewhere, whole, at } = useFields({ draft, labels: LABELS, problem, save });
  const price = minorOf(form.price, form.currency);
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return html`<form ...${whole} aria-label="Ticket">
    <${Again} draft=${draft} clear=${clear} />
    <${Field} ...${at("title")} required />
    <${Field} ...${at("venue")} hint="May be left out" />
    <${Field} ...${at("starts_at")} type="datetime-local" max="9999-12-31T23:59" hint="In your time, ${zone}; may be left out" />
    ${fresh &&
    html`<${Field} ...${at("currency")} label="Currency">
      ${CURRENCIES.map((code) => html`<option key=${code} value=${code} selected=${code === form.currency}>${code} ${nameOf(code)}</option>`)}
    <//>`}
    <${Field} ...${at("price")} label="Price in ${form.currency}" inputmode="decimal" required
      hint=${price ? `A seat costs ${money(price, form.currency)}` : fields.price ? undefined : amountHint(form.currency)} />
    <${Field} ...${at("quantity")} type="number" inputmode="numeric" min="1" step="1" required hint=${seatsHint(form.quantity, taken)} />
    <${Field} ...${at("max_per_order")} type="number" inputmode="numeric" min="1" step="1" required />
    <${Trouble} problem=${elsewhere} />
    <div class="choices"><${Deed} type="submit" busy=${busy}>${verb}<//></div>
  </form>`;
}

const currencies = new Intl.DisplayNames(navigator.languages, { type: "currency", fallback: "none" });
const nameOf = (code) => currencies.of(code) ?? "";

function Change({ id }) {
  const who = useStore(me);
  const path = `/api/tickets/${encodeURIComponent(id)}`;
  const { data, problem, again } = useData(path);
  if (!data) return html`<h1>Ticket</h1>${problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`}`;
  if (data.seller_id !== who.user_id) {
    return html`<h1>${data.title}</h1>
      <p>Somebody else sells this ticket: only they can change it.</p>
      <p><a class="button" href="/tickets/${id}">See it in the shop</a></p>`;
  }
  return html`<${Mine} path=${path} loaded=${data} />`;
}

/** A ticket of one's own. */
function Mine({ path, loaded }) {
  const [now, setNow] = useState(loaded); // as it is heard of
  const draft = useDraft(now, written, "It is on sale.");
  const { base, form, touched, theirs, told, tell } = draft;
  const hear = (ticket) => setNow((before) => (ticket.version >= before.version ? ticket : before));
  const [save, saving, problem, clear] = useDeed(async (bad) => {
    tell("");
    const names = NAMES.filter((name) => touched.includes(name) || bad.includes(name));
    if (!names.length) return tell("There is nothing to save: it reads so already.");
    const json = read(form, names, bad);
    try {
      const saved = await ask(path, { method: "PATCH", json, headers: { "If-Match": `"${base.version}"` } });
      hear(saved);
      draft.saved(saved);
    } catch (error) {
      if (error.status !== 412) throw error;
      const theirs = await ask(path);
      hear(theirs);
      draft.meet(theirs);
    }
  });
  useEvents(`/api/tickets/stream?id=${base.id}`, {
    ticket: (ticket) => {
      hear(ticket);
      if (ticket.version > base.version && !touched.length && !saving) draft.take(ticket);
    },
  });
  const withdraw = async () => {
    hear(await ask(path, { method: "DELETE" }));
    tell("Withdrawn.");
  };
  return html`<h1>${now.title}</h1>
    <p class="sales"><${Sales} ticket=${now} /></p>
    <p><a href="/tickets/${now.id}">See it in the shop</a></p>
    ${now.status === "withdrawn"
      ? html`<${Gone} ticket=${now} draft=${draft} />`
      : html`<${Conflict} draft=${draft} written=${written} labels=${LABELS} say=${(value, name) => inWords(value, name, form.currency)} clear=${clear} />
          ${!theirs && now.version > base.version && touched.length > 0 && !saving &&
          html`<p class="notice" role="status">Somebody else has changed this ticket since you opened it. When you save, you see what differs first.</p>`}
          <${Form} draft=${draft} busy=${saving} problem=${problem} clear=${clear} save=${save} verb=${theirs ? "Save yours on top" : "Save"} taken=${now.taken} />
          <${Told}>${told}<//>
          <${Sure} name="Withdraw" question="Withdraw this ticket?" yes="Withdraw it" no="Keep it on sale" deed=${withdraw}>
            Nobody can reserve it any more. What is sold stays sold, and open reservations may still be paid. It cannot be put on sale again.
          <//>`}`;
}

/** What a field holds. */
function inWords(value, name, currency) {
  if (!value) return "nothing";
  if (name === "starts_at") return moment(value);
  return name === "price" ? `${value} ${currency}` : value;
}

/** A ticket that does not change any more. */
function Gone({ ticket, draft: { form, touched, told, drop } }) {
  const shown = useRef(null);
  useEffect(() => {
    drop();
    if (told) shown.current.focus(); // what was pressed is gone
  }, []);
  return html`<div class="outcome" tabindex="-1" ref=${shown} role="status">
      <p><strong>Withdrawn.</strong> Nobody can reserve it any more, and it does not change. Seats that are sold stay sold; open reservations may still be paid.</p>
    </div>
    <dl class="facts">
      ${ticket.venue && html`<div><dt>Venue</dt><dd>${ticket.venue}</dd></div>`}
      ${ticket.starts_at && html`<div><dt>When</dt><dd>${moment(ticket.starts_at)}</dd></div>`}
      <div><dt>Price</dt><dd>${money(ticket.price, ticket.currency)}</dd></div>
    </dl>
    ${touched.length > 0 &&
    html`<p>What you wrote was not saved:</p>
      <ul>${touched.map((name) => html`<li key=${name}>${LABELS[name]}: ${inWords(form[name], name, form.currency)}</li>`)}</ul>`}
    <p><a class="button" href="/sell/new">Put another on sale</a></p>`;
}
