// One template: written, tried with data, saved.

import { html, useEffect, useState } from "./html.js";
import { Deed, Field, For, Sure, Told, Trouble, Waiting } from "./parts.js";
import { ask, Problem, response } from "./ask.js";
import { useData, useDeed } from "./data.js";
import { Again, Conflict, dropDraft, useDraft, useFields } from "./draft.js";
import { Page } from "./preview.js";
import { go } from "./way.js";
import { moment } from "./words.js";

const PATH = "/api/templates";
const LABELS = { name: "Name", format: "Format", body: "Template" };
const EMPTY = { name: "", format: "pdf", body: "{{ show }}\n{{ qr(number) }}\nTicket {{ number }}\nSeat {{ seat }}\n" };
const SAMPLE = '{\n  "show": "Opening night",\n  "number": "7",\n  "seat": "A1"\n}';
const HINT = "Jinja2: {{ name }} puts in what the data has under that name, {{ qr(name) }} a QR code of it. The first line of a PDF is its title.";

export default function Template({ id }) {
  return html`<p><a href="/jobs/templates">‹ Templates</a></p>
    <${For} why="Log in to write templates.">${id ? html`<${Existing} id=${id} />` : html`<h1>New template</h1><${New} />`}<//>`;
}

const written = ({ name, format, body }) => ({ name, format, body });

function New() {
  const draft = useDraft(EMPTY, written);
  const [create, busy, problem, clear] = useDeed(async () => {
    const { id } = await ask(PATH, { method: "POST", json: draft.form });
    draft.drop();
    go(`${PATH.replace("/api", "/jobs")}/${id}?new`);
  });
  return html`<${Form} draft=${draft} busy=${busy} problem=${problem} clear=${clear} save=${create} verb="Save" />
    <${Preview} form=${draft.form} />`;
}

function Existing({ id }) {
  const path = `${PATH}/${encodeURIComponent(id)}`;
  const { data, problem, again } = useData(path);
  useEffect(() => {
    if (problem?.status === 404) dropDraft();
  }, [problem]);
  if (data) return html`<${Mine} path=${path} loaded=${data} />`;
  return html`<h1>Template</h1>${problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`}`;
}

function Mine({ path, loaded }) {
  const draft = useDraft(loaded, written, "Saved.");
  const { base, form, touched, theirs, told, tell } = draft;
  const [save, saving, problem, clear] = useDeed(async () => {
    tell("");
    if (!touched.length) return tell("There is nothing to save: it reads so already.");
    try {
      draft.saved(await ask(path, { method: "PUT", json: form, headers: { "If-Match": `"${base.version}"` } }));
    } catch (error) {
      if (error.status !== 412) throw error;
      draft.meet(await ask(path));
    }
  });
  const remove = async () => {
    await ask(path, { method: "DELETE" });
    draft.drop();
    go("/jobs/templates", { replace: true });
  };
  return html`<h1>${base.name}</h1>
    <p class="facts">Version ${base.version}, saved on ${moment(base.saved_at)}</p>
    <${Conflict} draft=${draft} written=${written} labels=${LABELS} say=${say} clear=${clear} />
    <${Form} draft=${draft} busy=${saving} problem=${problem} clear=${clear} save=${save} verb=${theirs ? "Save yours on top" : "Save"} />
    <${Told}>${told}<//>
    <${Preview} form=${form} />
    <${Sure} name="Delete" question="Delete this template?" yes="Delete it" no="Keep it" deed=${remove}>
      Nothing more is made of it. Documents that were made of it stay.
    <//>`;
}

const say = (value, name) => (name === "body" ? html`<pre class="version" tabindex="0" role="group" aria-label="Text">${value}</pre>` : name === "format" ? value.toUpperCase() : value);

/** The fields. What is wrong with the text is shown with its line. */
function Form({ draft, busy, problem, clear, save, verb }) {
  const { form } = draft;
  const { elsewhere, whole, at } = useFields({ draft, labels: LABELS, problem, save });
  const { line } = problem?.told ?? {};
  return html`<form class="wide" ...${whole} aria-label="Template">
    <${Again} draft=${draft} clear=${clear} />
    <${Field} ...${at("name")} required />
    <${Field} ...${at("format")}>
      <option value="pdf" selected=${form.format === "pdf"}>PDF</option>
      <option value="html" selected=${form.format === "html"}>HTML</option>
    <//>
    <${Field} ...${at("body")} rows="12" spellcheck=${false} required hint=${HINT} />
    ${line && html`<${Line} text=${form.body} line=${line} lead=${() => lead(whole.ref.current.elements.body, line)} />`}
    <${Trouble} problem=${elsewhere} />
    <div class="choices"><${Deed} type="submit" busy=${busy}>${verb}<//></div>
  </form>`;
}

/** A line that is wrong, and the way there. */
function Line({ text, line, lead }) {
  return html`<div class="trouble">
    <p>Line ${line}: <code>${text.split("\n")[line - 1] ?? ""}</code></p>
    <button type="button" class="quiet small" onClick=${lead}>Go to line ${line}</button>
  </div>`;
}

/** Select a line of a text. */
function lead(area, line) {
  const lines = area.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
  area.focus();
  area.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
}

/** The document that the server makes of what is in the form, with data to try it. */
function Preview({ form }) {
  const [data, setData] = useState(SAMPLE);
  const [made, setMade] = useState(null); // { url, page, format }
  useEffect(() => () => made && URL.revokeObjectURL(made.url), [made]);
  const [preview, busy, problem] = useDeed(async () => {
    setMade(null);
    const json = { format: form.format, body: form.body, data: parsed(data) };
    const blob = await (await response(`${PATH}/preview`, { method: "POST", json })).blob();
    setMade({ url: URL.createObjectURL(blob), page: form.format === "html" ? await blob.text() : null, format: form.format });
  });
  const wrong = problem?.fields.data;
  const submit = (event) => {
    event.preventDefault();
    preview();
  };
  return html`<section class="apart" aria-label="Try it">
    <h2>Try it</h2>
    <form class="wide" novalidate onSubmit=${submit} aria-label="Try it">
      <${Field} label="Data" name="data" rows="6" spellcheck=${false} hint="A JSON object, as a row of a file would hold it" value=${data} problem=${wrong}
        onInput=${(event) => setData(event.target.value)} />
      <div class="choices"><${Deed} class="quiet" type="submit" busy=${busy}>Preview<//></div>
    </form>
    ${!wrong && problem && html`<${Trouble} problem=${{ message: problem.fields.body ?? problem.message }} />`}
    ${problem?.told.line && html`<${Line} text=${form.body} line=${problem.told.line} lead=${() => lead(document.querySelector("textarea[name=body]"), problem.told.line)} />`}
    <${Told}>${made && "Made; nothing of it is kept."}<//>
    ${made &&
    html`${made.page !== null && html`<${Page} source=${made.page} />`}
      <p><a class="button" href=${made.url} download="preview.${made.format}">Download the ${made.format.toUpperCase()}</a></p>`}
  </section>`;
}

/** Throws a Problem for what is no JSON object. */
function parsed(text) {
  let value;
  try {
    value = JSON.parse(text || "{}");
  } catch (error) {
    throw new Problem(422, { errors: [{ field: "data", message: `This is no JSON: ${error.message}` }] });
  }
  if (value && typeof value === "object" && !Array.isArray(value)) return value;
  throw new Problem(422, { errors: [{ field: "data", message: "A JSON object is needed: { … }" }] });
}
