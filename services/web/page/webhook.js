// A webhook: what it is, and what became of everything that was posted to it.

import { html, useEffect, useRef, useState } from "./html.js";
import { Deed, Field, For, More, Nothing, Sure, Told, Trouble, Waiting } from "./parts.js";
import { ask, withQuery, newKey } from "./ask.js";
import { serverNow } from "./clock.js";
import { useData, useDeed, usePages } from "./data.js";
import { kindOf } from "./notice_kinds.js";
import { WebhookForm } from "./new_webhook.js";
import { useNotices } from "./notices.js";
import { Secret } from "./secret.js";
import { useStore } from "./store.js";
import { go, place, setParameter } from "./way.js";
import { stateOf, toldOf } from "./webhooks.js";
import { exactly, moment, plural, span } from "./words.js";

const LOOK = 1_000; // ms between two looks at what is on its way, at least
const LONGEST = 60_000; // ms, if it is tried again much later
const TRIES = 10; // looks for what is posted soon

export default function WebhookView({ id }) {
  return html`<p><a href="/notices/webhooks">‹ Webhooks</a></p>
    <${For} why="Log in to see your webhook."><${Mine} id=${id} /><//>`;
}

function Mine({ id }) {
  const path = `/api/webhooks/${encodeURIComponent(id)}`;
  const { data: webhook, problem, again, set } = useData(path);
  if (!webhook) return html`<h1>Webhook</h1>${problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`}`;
  return html`<h1>Webhook</h1>
    <dl class="facts">
      <div><dt>Address</dt><dd class="address">${webhook.url}</dd></div>
      <div><dt>State</dt><dd>${stateOf(webhook)}</dd></div>
      <div><dt>Told of</dt><dd>${toldOf(webhook)}</dd></div>
      <div><dt>Made</dt><dd>${moment(webhook.created_at)}</dd></div>
      ${webhook.both_sign_until && html`<div><dt>The secret before signs too until</dt><dd>${moment(webhook.both_sign_until)}</dd></div>`}
    </dl>
    <${Trouble} problem=${problem} again=${again} />
    <${Change} path=${path} webhook=${webhook} set=${set} />
    <${Deliveries} path=${path} webhook=${webhook} lookAgain=${again} />`;
}

/** What can be done with it. */
function Change({ path, webhook, set }) {
  const [editing, setEditing] = useState(false);
  const [secret, setSecret] = useState(null);
  const [said, setSaid] = useState("");
  const opener = useRef(null);
  const key = useRef(null); // of a new secret: what is sent again makes no second one
  const [turn, turning, notTurned] = useDeed(async () => {
    const now = await ask(path, { method: "PATCH", json: { enabled: !webhook.enabled } });
    set(now);
    setSaid(now.enabled ? "It is active: what happens from now on is posted." : "It is paused: nothing is posted.");
  });
  const saved = (now) => {
    set(now);
    setSaid("Saved.");
    setEditing(false);
    opener.current.focus();
  };
  const rotate = async () => {
    key.current ??= newKey();
    const { secret: made, ...now } = await ask(`${path}/rotate`, { method: "POST", headers: { "Idempotency-Key": key.current } });
    key.current = null;
    set(now);
    setSecret(made);
  };
  const remove = async () => {
    await ask(path, { method: "DELETE" });
    go("/notices/webhooks", { replace: true });
  };
  return html`<div class="choices">
      <button type="button" class="quiet" ref=${opener} aria-expanded=${editing} onClick=${() => (setSaid(""), setEditing(!editing))}>Change</button>
      <${Deed} class="quiet" busy=${turning} onClick=${turn}>${webhook.enabled ? "Pause" : "Resume"}<//>
    </div>
    <${Told}>${said}<//>
    <${Trouble} problem=${notTurned} />
    ${editing && html`<${Edit} path=${path} webhook=${webhook} saved=${saved} />`}
    <${Sure} name="New secret" question="Make a new secret?" yes="Make it" no="Leave it as it is" deed=${rotate}>
      Posts are signed with the new secret at once. For 24 hours they have a signature by the one before too, so that your
      program can change over.
    <//>
    ${secret && html`<${Secret} secret=${secret} />`}
    <${Sure} name="Delete" question="Delete this webhook?" yes="Delete it" no="Keep it" deed=${remove}>
      Nothing more is posted to ${webhook.url}, also not what is on its way. This cannot be undone.
    <//>`;
}

function Edit({ path, webhook, saved }) {
  const [url, setUrl] = useState(webhook.url);
  const [kinds, setKinds] = useState(webhook.kinds);
  const [save, busy, problem] = useDeed(async () => saved(await ask(path, { method: "PATCH", json: { url: url.trim(), kinds } })));
  return html`<section class="panel" aria-label="Change the webhook">
    <${WebhookForm} url=${url} setUrl=${setUrl} kinds=${kinds} setKinds=${setKinds} save=${save} busy=${busy} problem=${problem} name="Save" />
  </section>`;
}

const STATES = { pending: "On its way", delivered: "Delivered", parked: "Given up" };
const WHY = {
  attempts: "it was tried often enough",
  gone: "the address answered that it is gone for good",
  disabled: "the webhook was paused",
  removed: "the webhook was deleted",
  error: "it could not be posted",
};

function Deliveries({ path, webhook, lookAgain }) {
  const status = useStore(place).searchParams.get("status") ?? "";
  const pages = usePages(withQuery(`${path}/deliveries`, { status }));
  const [awaited, setAwaited] = useState(null); // a notice that is posted soon: `{ id, tries }`
  useNotices((notice) => {
    if (!notice) pages.again();
    else if (webhook.enabled && (webhook.kinds?.includes(notice.kind) ?? true)) setAwaited({ id: notice.id, tries: TRIES });
  });
  useEffect(() => {
    const isThere = pages.items?.some(({ notification_id }) => notification_id === awaited?.id);
    if (!awaited?.tries || isThere) return;
    pages.again();
    const timer = setTimeout(() => setAwaited(({ id, tries }) => ({ id, tries: tries - 1 })), LOOK);
    return () => clearTimeout(timer);
  }, [awaited]);
  return html`<h2>What was posted</h2>
    <div class="filter"><${Field} label="Show" name="status" value=${status} onChange=${(event) => setParameter("status", event.target.value)}>
      <option value="">everything</option>
      <option value="pending">what is on its way</option>
      <option value="delivered">what was delivered</option>
      <option value="parked">what was given up</option>
    <//></div>
    <${Trouble} problem=${pages.problem} again=${pages.again} />
    ${!pages.items && !pages.problem && html`<${Waiting} />`}
    ${pages.items?.length === 0 &&
    (status
      ? html`<${Nothing} title="None of it"><p>Show everything to see what there is.</p><//>`
      : html`<${Nothing} title="Nothing was posted yet">
          <p>What you are told from now on is. <a href="/">Reserve a ticket</a>, for instance.</p>
        <//>`)}
    <ul class="notices">
      ${pages.items?.map((delivery) => html`<${Delivery} key=${delivery.id} path=${path} listed=${delivery} lookAgain=${lookAgain} />`)}
    </ul>
    <${More} pages=${pages} />`;
}

function Delivery({ path, listed, lookAgain }) {
  const box = useRef(null);
  const [asked, setAsked] = useState(null); // as it was asked for since
  const delivery = asked ?? listed;
  const { id, kind, status, reason, created_at, again_at, attempts } = delivery;
  const at = `${path}/deliveries/${id}`;
  useEffect(() => setAsked(null), [listed]);
  useEffect(() => {
    if (status !== "pending") return;
    const left = again_at ? Date.parse(again_at) - serverNow() : 0;
    const look = () => ask(at).then(setAsked, () => setAsked({ ...delivery })); // which looks again
    const timer = setTimeout(look, Math.min(Math.max(LOOK, left), LONGEST));
    return () => clearTimeout(timer);
  }, [delivery]);
  useEffect(() => {
    if (asked && reason === "gone") lookAgain(); // that has paused the webhook
  }, [reason]);
  const [redeliver, busy, problem] = useDeed(async () => {
    setAsked(await ask(`${at}/redeliver`, { method: "POST" }));
    box.current?.focus(); // what was pressed is gone, for a while
  });
  return html`<li tabindex="-1" ref=${box} class=${status}>
    <p><strong>${kindOf(kind)}</strong></p>
    <p>${STATES[status]}${reason ? `: ${WHY[reason] ?? reason}` : ""}${again_at ? `; tried again on ${exactly(again_at)}` : ""}</p>
    <details>
      <summary>${plural(attempts.length, "attempt")}</summary>
      <ol class="attempts">
        ${attempts.map((each) => html`<li value=${each.attempt}>
          ${exactly(each.at)}, ${span(each.milliseconds)}: ${each.error ?? `answered ${each.status}`}
        </li>`)}
      </ol>
    </details>
    <p class="choices">
      <small>${moment(created_at)}, webhook-id <code>${id}</code></small>
      ${status !== "pending" && html`<${Deed} class="quiet small" busy=${busy} onClick=${redeliver}>Post again<//>`}
    </p>
    <${Trouble} problem=${problem} />
  </li>`;
}
