// What can be done in bulk, and whether it is paused.

import { html } from "./html.js";
import { Deed, For, Nothing, Told, Trouble, Waiting } from "./parts.js";
import { ask } from "./ask.js";
import { columnsOf } from "./csv.js";
import { useData, useDeed } from "./data.js";
import { may, me } from "./session.js";
import { useStore } from "./store.js";
import { jobOf } from "./words.js";

const PATH = "/api/batch-kinds";

export default function Kinds() {
  return html`<p><a href="/jobs">‹ Jobs</a></p>
    <h1>Kinds of job</h1>
    <${For} why="Log in to see what can be done in bulk."><${List} /><//>`;
}

function List() {
  const operator = may(useStore(me), "operator");
  const { data: kinds, problem, again, set } = useData(PATH);
  if (!kinds) return problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`;
  if (!kinds.length) return html`<${Nothing} title="No kind is installed"><p>Whoever runs this system installs them: <code>boxoffice batch kinds</code> shows those there are.</p><//>`;
  const change = (kind) => set(kinds.map((each) => (each.name === kind.name ? kind : each)));
  return html`<p>
      ${operator
        ? "A kind that you pause begins nothing until you resume it. Its batches wait, and lose nothing."
        : "Batches of a kind that is paused wait, and lose nothing. An operator pauses and resumes."}
      ${" "}<button type="button" class="quiet small" onClick=${again}>Look again</button>
    </p>
    <${Trouble} problem=${problem} />
    <ul class="rows">
      ${kinds.map((kind) => html`<${Kind} key=${kind.name} kind=${kind} operator=${operator} change=${change} />`)}
    </ul>`;
}

function Kind({ kind, operator, change }) {
  const { name, about, paused } = kind;
  const verb = paused ? "Resume" : "Pause";
  const [run, busy, problem] = useDeed(async () =>
    change(await ask(`${PATH}/${encodeURIComponent(name)}/${verb.toLowerCase()}`, { method: "POST" })),
  );
  return html`<li class="kind">
    <h2>${jobOf(name)}</h2>
    <p><code>${name}</code>: ${about}</p>
    <${Told}><span class="runs ${paused ? "paused" : ""}">${paused ? "Paused" : "Runs"}</span><//>
    <${Columns} kind=${kind} />
    ${operator && html`<${Deed} class="quiet" busy=${busy} aria-label="${verb} ${name}" onClick=${() => run()}>${verb}<//>`}
    <${Trouble} problem=${problem} />
  </li>`;
}

/** What an operation holds. */
function Columns({ kind }) {
  const columns = columnsOf(kind);
  if (!columns.length) return null;
  return html`<details>
    <summary>What one of ${kind.name} holds</summary>
    <ul>
      ${columns.map(({ name, required, about }) => html`<li key=${name}><code>${name}</code>: ${about}${required ? "" : "; may be left out"}</li>`)}
    </ul>
  </details>`;
}
