// A secret of a webhook, which is shown once.

import { html, useEffect, useId, useRef, useState } from "./html.js";
import { Told } from "./parts.js";

export function Secret({ secret, children }) {
  const id = useId();
  const box = useRef(null);
  const field = useRef(null);
  const [said, setSaid] = useState("");
  useEffect(() => box.current.focus(), [secret]);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(secret);
      setSaid("Copied.");
    } catch {
      field.current.select();
      setSaid("It cannot be copied from here: press Ctrl+C.");
    }
  };
  return html`<section class="outcome complete" aria-label="The secret" tabindex="-1" ref=${box}>
    <p><strong>Keep this secret now: it is not shown again.</strong> With it your program checks that a post is from here
      (<a href="https://www.standardwebhooks.com/" target="_blank" rel="noreferrer">Standard Webhooks</a>).</p>
    <div class="field">
      <label for=${id}>Secret</label>
      <input id=${id} ref=${field} readonly value=${secret} spellcheck="false" onFocus=${(event) => event.target.select()} />
    </div>
    <div class="choices">
      <button type="button" class="quiet" onClick=${copy}>Copy</button>
      ${children}
    </div>
    <${Told}>${said}<//>
  </section>`;
}
