// How a webhook is made.

import { html, useEffect, useRef, useState } from "./html.js";
import { Deed, Field, For, Trouble } from "./parts.js";
import { ask, newKey } from "./ask.js";
import { useDeed } from "./data.js";
import { Kinds } from "./notice_kinds.js";
import { Secret } from "./secret.js";

export default function NewWebhook() {
  return html`<p><a href="/notices/webhooks">‹ Webhooks</a></p>
    <h1>New webhook</h1>
    <${For} why="Log in to make a webhook."><${Make} /><//>`;
}

function Make() {
  const [url, setUrl] = useState("");
  const [kinds, setKinds] = useState(null);
  const [made, setMade] = useState(null);
  const key = useRef(null); // of this wish: what is sent again makes no second webhook
  useEffect(() => {
    key.current = null;
  }, [url, kinds]);
  const [make, busy, problem] = useDeed(async () => {
    key.current ??= newKey();
    const json = { url: url.trim(), kinds };
    setMade(await ask("/api/webhooks", { method: "POST", json, headers: { "Idempotency-Key": key.current } }));
  });
  if (made) {
    return html`<p>What you are told from now on is posted to <strong class="address">${made.url}</strong>.</p>
      <${Secret} secret=${made.secret}><a class="button" href="/notices/webhooks/${made.id}">To the webhook</a><//>`;
  }
  return html`<${WebhookForm} url=${url} setUrl=${setUrl} kinds=${kinds} setKinds=${setKinds} save=${make} busy=${busy} problem=${problem} name="Make it" />`;
}

/** Where a webhook leads and what it is told of, to be given or changed. */
export function WebhookForm({ url, setUrl, kinds, setKinds, save, busy, problem, name }) {
  const [none, setNone] = useState(false); // nothing is chosen
  const wrong = problem?.fields ?? {};
  const form = useRef(null);
  useEffect(() => form.current.querySelector("[aria-invalid]")?.focus(), [problem]);
  const submit = (event) => {
    event.preventDefault();
    setNone(kinds?.length === 0);
    if (kinds?.length !== 0) save();
  };
  return html`<form onSubmit=${submit} ref=${form}>
    <${Field} label="Address" type="url" required maxlength="2000" value=${url} problem=${wrong.url} autocomplete="url"
      hint="An address of the public internet that begins with https://" onInput=${(event) => setUrl(event.target.value)} />
    <${Kinds} chosen=${kinds} choose=${(next) => (setKinds(next), setNone(false))} problem=${none ? "Choose one at least." : wrong.kinds} />
    <${Trouble} problem=${wrong.url || wrong.kinds ? null : problem} />
    <div><${Deed} type="submit" busy=${busy}>${name}<//></div>
  </form>`;
}
