// What can be done in bulk, and whether it is paused.

import { html } from "./html.js";
import { Deed, For, Nothing, Told, Trouble, Waiting } from "./parts.js";
import { ask } from "./ask.js";
import { useData, useDeed } from "./data.js";
import { may, me } from "./session.js";
import { useStore } from "./store.js";

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
    <h2>${name}</h2>
    <p>${about}</p>
    <${Told}><span class="runs ${paused ? "paused" : ""}">${paused ? "Paused" : "Runs"}</span><//>
    <${Fields} schema=${kind.fields} of=${name} />
    ${operator && html`<${Deed} class="quiet" busy=${busy} aria-label="${verb} ${name}" onClick=${() => run()}>${verb}<//>`}
    <${Trouble} problem=${problem} />
  </li>`;
}

/** What an operation holds, by its JSON schema. */
function Fields({ schema, of }) {
  const shape = inside(schema, schema);
  const fields = Object.entries(shape.properties ?? {});
  if (!fields.length) return null;
  return html`<details>
    <summary>What one of ${of} holds</summary>
    <ul>
      ${fields.map(
        ([name, field]) => html`<li key=${name}>
          <code>${name}</code>: ${typeOf(field, schema)}${shape.required?.includes(name) ? "" : ", may be left out"}
        </li>`,
      )}
    </ul>
  </details>`;
}

/** A schema, where it is said elsewhere in the document. */
const inside = (schema, all) => (schema.$ref ? (all.$defs?.[schema.$ref.split("/").pop()] ?? {}) : schema);

const TYPES = { integer: "a whole number", number: "a number", string: "text", boolean: "true or false", array: "a list", object: "an object", null: "null" };

function typeOf(given, all) {
  const field = inside(given, all);
  if (field.description) return field.description;
  if (field.enum) return field.enum.length > 10 ? `one of ${field.enum.length} codes, as ${field.enum[0]}` : `one of ${field.enum.join(", ")}`;
  if (field.anyOf) return field.anyOf.map((each) => typeOf(each, all)).join(" or ");
  return { uuid: "an id", "date-time": "a time" }[field.format] ?? TYPES[field.type] ?? "anything";
}
