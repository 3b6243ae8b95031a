// One order: its seats are held until the time to pay is over.

import { html, useEffect, useRef, useState } from "./html.js";
import { Deed, For, Trouble, Told, Waiting } from "./parts.js";
import { ask, newKey } from "./ask.js";
import { useNow } from "./clock.js";
import { useData, useDeed, useLook } from "./data.js";
import { useNotices } from "./notices.js";
import { clockface, moment, money, plural } from "./words.js";

const SOON = 60_000; // ms; from then on it is urgent
const LOOK = 400; // ms between two looks at an order of which something is about to be known
const LATER = 2_000; // ms, where that takes longer
const PATIENCE = 30_000; // ms for a payment to end: whoever was to tell of it may have crashed

/** Whether it may still be paid. */
const isOpen = (order) => order?.status === "created" || order?.status === "awaiting_payment";

/** Whether something is so for longer than `patience` ms. */
function useLate(so, patience) {
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = so && setTimeout(() => setLate(true), patience);
    return () => (clearTimeout(timer), setLate(false));
  }, [so]);
  return late;
}

export default function Order({ id }) {
  return html`<p><a href="/orders">‹ My orders</a></p><${For} why="Log in to see your order."><${Mine} id=${id} /><//>`;
}

function Mine({ id }) {
  const path = `/api/orders/${encodeURIComponent(id)}`;
  const { data: order, problem, again, set } = useData(path);
  const keys = useRef({}); // of each token's payment: what is sent again is the same payment
  const [pressed, setPressed] = useState();
  const [pay, paying, notPaid] = useDeed(async (token) => {
    setPressed(token);
    keys.current[token] ??= newKey();
    try {
      set(await ask(`${path}/payment`, { method: "POST", json: { token }, headers: { "Idempotency-Key": keys.current[token] } }));
    } catch (error) {
      if (error.status && error.status < 500) delete keys.current[token];
      else again(); // whether it was paid, the order says
      throw error;
    }
  });
  const [cancel, cancelling, notCancelled] = useDeed(async () => set(await ask(path, { method: "DELETE" })));
  const open = isOpen(order);
  const [ended, setEnded] = useState(false); // so a notice says
  useNotices((notice) => {
    if (!notice) again();
    else if (notice.about === id && notice.kind !== "order.created") setEnded(true);
  });
  const begun = open && order.paying; // a payment, be it before this was loaded or elsewhere
  const late = useLate(begun, PATIENCE);
  const unknown = begun && (late || notPaid?.status >= 500);
  const underWay = paying || (begun && !unknown);
  const looks = open && (ended || (begun && !paying));
  useLook(looks, again, unknown ? LATER : LOOK); // what tells may be quicker than what is asked
  if (!order) return html`<h1>Order</h1>${problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`}`;
  const { title, quantity, total, currency } = order;
  return html`<h1>${title}</h1>
    <dl class="facts">
      <div><dt>Seats</dt><dd>${quantity}</dd></div>
      <div><dt>Total</dt><dd>${money(total, currency)}</dd></div>
      <div><dt>Ordered</dt><dd>${moment(order.created_at)}</dd></div>
    </dl>
    ${open &&
    html`<${Countdown} order=${order} again=${again} looks=${looks} />
      <${Payment} pay=${pay} pressed=${paying ? pressed : undefined} underWay=${underWay} unknown=${unknown} problem=${notPaid ?? notCancelled} />
      <p><${Deed} class="quiet" busy=${cancelling} onClick=${cancel}>Give the ${quantity === 1 ? "seat" : "seats"} back<//></p>
      ${underWay && html`<p class="quiet">To give the ${quantity === 1 ? "seat" : "seats"} back stops the payment: nothing is paid then.</p>`}`}
    <${Outcome} order=${order} />
    <${Trouble} problem=${problem} />`;
}

/** How long there is to pay, by the server's clock; when that is over, the order is looked at until it says so. */
function Countdown({ order, again, looks }) {
  const now = useNow(200);
  const end = Date.parse(order.expires_at);
  const over = now !== null && now >= end;
  useLook(over && !looks, again, LOOK); // two would take the questions from each other
  if (now === null) return html`<${Waiting} />`;
  const left = end - now;
  if (over) return html`<p class="countdown" role="status">The time to pay is over; the seats are given back…</p>`;
  return html`<p class="countdown ${left < SOON ? "soon" : ""}">
    <span role="timer" aria-label="Time left to pay">${clockface(left)}</span>
    <span> left to pay, until ${new Date(end).toLocaleTimeString()}</span>
  </p>`;
}

const TOKENS = [
  ["tok_ok", "Pay", ""],
  ["tok_slow", "Pay, slowly", "quiet"],
  ["tok_declined", "Pay with a card that is declined", "quiet"],
];

/** The fake gateway's tokens, as there is no other gateway yet. */
function Payment({ pay, pressed, underWay, unknown, problem }) {
  const told = underWay ? "A payment is under way…" : unknown ? "How the last payment ended is not known yet. You may pay again: nothing is paid twice." : "";
  return html`<section aria-label="Payment">
    <p class="quiet">The payment gateway is a fake: no money moves.</p>
    <${Told}>${told}<//>
    <div class="choices">
      ${TOKENS.map(
        ([token, name, look]) => html`<${Deed} class=${look} busy=${pressed === token} aria-disabled=${underWay ? "true" : undefined} onClick=${() => underWay || pay(token)}>${name}<//>`,
      )}
    </div>
    <${Trouble} problem=${problem} />
  </section>`;
}

/** What became of it; told also to whoever does not see it change. */
function Outcome({ order }) {
  const shown = useRef(null);
  const [before] = useState(order.status);
  const { id, ticket_id, status, reason, closed_at, quantity } = order;
  useEffect(() => {
    if (status !== before && !isOpen(order)) shown.current?.focus(); // what was pressed is gone
  }, [status]);
  if (isOpen(order)) return html`<${Told} />`;
  return html`<div class="outcome ${status}" tabindex="-1" ref=${shown} role="status">
    ${status === "complete" &&
    html`<p><strong>Paid.</strong> ${plural(quantity, "seat is", "seats are")} yours.</p>
      <p><a class="button" href="/api/orders/${id}/ticket.pdf" download="ticket-${id}.pdf">Download the e-ticket (PDF)</a></p>`}
    ${status === "cancelled" &&
    html`<p><strong>${reason === "expired" ? "Not paid in time." : "Cancelled."}</strong>
        ${" "}The seats went back on ${moment(closed_at)}; nothing was paid.</p>
      <p><a class="button" href="/tickets/${ticket_id}">Reserve again</a></p>`}
  </div>`;
}
