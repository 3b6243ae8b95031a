// A file of operations on its way to the server.

import { html, useEffect, useId, useMemo, useRef, useState } from "./html.js";
import { Deed, Field, For, Nothing, Trouble, Waiting } from "./parts.js";
import { ask, Problem, upload, withQuery, newKey } from "./ask.js";
import { columnsOf, sampleOf } from "./csv.js";
import { useData, useDeed } from "./data.js";
import { chosen, sent } from "./files.js";
import { useStore } from "./store.js";
import { go, place, setParameter } from "./way.js";
import { jobOf, percent, size } from "./words.js";

const MOST_MENDED = 300_000; // bytes of a file whose text is mended here
const MENDABLE = [400, 413, 422]; // how the server answers to a file that is at fault
const USUAL = "tickets.create";
const PRIORITIES = ["high", "normal", "low"];

export default function Upload() {
  return html`<p><a href="/jobs">‹ Jobs</a></p><h1>Upload a file</h1>
    <${For} role="seller" why="Log in as a seller to upload a file."><${Kinds} /><//>`;
}

/** What can be done in bulk, and which of it is meant. */
function Kinds() {
  const { data: kinds, problem, again } = useData("/api/batch-kinds");
  const wanted = useStore(place).searchParams.get("kind");
  if (!kinds) return problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`;
  if (!kinds.length) return html`<${Nothing} title="Nothing can be done in bulk here"><p>No kind of job is installed.</p><//>`;
  const kind = kinds.find(({ name }) => name === wanted) ?? kinds.find(({ name }) => name === USUAL) ?? kinds[0];
  return html`<p>A file has one thing to do on each row. It is checked while it comes in, and what is wrong with a row is told by its line.
      ${" "}<a href="#columns">Its columns, and a sample</a></p>
    <div class="form">
      <${Field} label="What is to be done?" value=${kind.name} hint=${kind.about} onChange=${(event) => setParameter("kind", event.target.value)}>
        ${kinds.map(({ name }) => html`<option value=${name} selected=${name === kind.name}>${jobOf(name)}</option>`)}
      <//>
    </div>
    ${kind.paused && html`<p class="notice">“${jobOf(kind.name)}” is paused: what you send waits until an operator resumes it.</p>`}
    <${Send} kind=${kind} />
    <${Columns} key=${kind.name} kind=${kind} />`;
}

/** What a file of this kind holds, and a small one to begin with. */
function Columns({ kind }) {
  const columns = useMemo(() => columnsOf(kind), [kind]);
  const sample = useMemo(() => URL.createObjectURL(new Blob([sampleOf(columns)], { type: "text/csv" })), [columns]);
  useEffect(() => () => URL.revokeObjectURL(sample), [sample]);
  return html`<section aria-labelledby="columns">
    <h2 id="columns">Its columns</h2>
    <p>The first line of the file names them, separated by commas. What is not required may be left out or empty.</p>
    <dl class="columns">
      ${columns.map(
        ({ name, required, about, example }) => html`<div>
          <dt><code>${name}</code> ${required ? html`<strong>required</strong>` : html`<span class="quiet">optional</span>`}</dt>
          <dd>${about}${!about.endsWith(`such as ${example}`) && html`, such as <code>${example}</code>`}</dd>
        </div>`,
      )}
    </dl>
    <p><a href=${sample} download="${kind.name}-sample.csv">Download a sample</a></p>
  </section>`;
}

/** Choose a file, send it, and see it go. */
function Send({ kind }) {
  const here = useStore(place).searchParams;
  const file = useStore(chosen);
  const input = useRef(null);
  const stop = useRef(null);
  const key = useRef(null); // of this wish: what came in and is sent again is no second job
  const [over, setOver] = useState(false); // whether a file is held over the page
  const [several, setSeveral] = useState(false);
  const [gone, setGone] = useState(null); // bytes
  const priority = PRIORITIES.includes(here.get("priority")) ? here.get("priority") : "normal";
  const strict = here.get("wrong") === "reject";
  const take = (files) => {
    if (!files?.length) return;
    key.current = null;
    setSeveral(files.length > 1);
    forget();
    chosen.value = { file: files[0], name: files[0].name };
  };
  useFilesHeldOver(setOver, (files) => {
    take(files);
    input.current?.focus();
  });
  useEffect(() => () => stop.current?.abort(), []);
  useEffect(() => void (key.current = null), [kind.name, priority, strict, file?.file, file?.text]);
  const [send, busy, problem, forget] = useDeed(async () => {
    const { file: blob, name, text } = chosen.value;
    const body = text === undefined ? blob : new Blob([text]);
    await readable(body, name);
    stop.current = new AbortController();
    setGone(0);
    try {
      const csv = !/\.(ndjson|jsonl)$/i.test(name);
      const path = withQuery("/api/batches", { kind: kind.name, priority, on_invalid: strict ? "reject" : "skip" });
      const job = await handIn(path, body, key, {
        signal: stop.current.signal,
        progress: setGone,
        headers: { "Content-Type": csv ? "text/csv" : "application/x-ndjson" },
      });
      sent.set(job.id, { file: body, name, csv });
      chosen.value = null;
      go(`/jobs/${job.id}`);
    } catch (error) {
      if (!error.status) await readable(body, name); // it may be the file that is gone
      throw error;
    } finally {
      setGone(null);
    }
  });
  const submit = (event) => {
    event.preventDefault();
    file ? send() : input.current.focus();
  };
  const bytes = file && (file.text === undefined ? file.file : new Blob([file.text])).size;
  return html`<section aria-labelledby="file"><h2 id="file">Your file</h2>
    <form onSubmit=${submit}>
      <div class="drop ${over ? "over" : ""}">
        <${FileField} input=${input} take=${take} disabled=${busy} />
        ${file && html`<p><strong>${file.name}</strong>, ${size(bytes)}${file.text === undefined ? "" : ", as mended below"}</p>`}
        ${several && html`<p class="wrong" role="alert">One file at a time: only the first of them was taken.</p>`}
      </div>
      <${Field} label="Priority" disabled=${busy} value=${priority} onChange=${(event) => setParameter("priority", event.target.value)}
        hint="High goes before what others wait for; low lets others go first.">
        ${PRIORITIES.map((each) => html`<option value=${each} selected=${each === priority}>${each}</option>`)}
      <//>
      <${Field} label="If a row is wrong" disabled=${busy} value=${strict ? "reject" : "skip"}
        onChange=${(event) => setParameter("wrong", event.target.value === "reject" ? "reject" : "")}>
        <option value="skip" selected=${!strict}>leave it out, and do the others</option>
        <option value="reject" selected=${strict}>do nothing at all</option>
      <//>
      ${gone === null
        ? html`<${Deed} type="submit" busy=${busy}>${problem ? "Send it again" : "Send it"}<//>`
        : html`<${Going} gone=${gone} of=${bytes} stop=${() => stop.current.abort()} />`}
    </form>
    ${problem && html`<${Refused} problem=${problem} file=${file} />`}
    ${file && (file.mends || MENDABLE.includes(problem?.status)) && html`<${Mend} file=${file} />`}
  </section>`;
}

function FileField({ input, take, disabled }) {
  const id = useId();
  return html`<label for=${id}>Choose a file, or drop one anywhere on this page</label>
    <input id=${id} type="file" ref=${input} accept=".csv,.ndjson,.jsonl,text/csv" disabled=${disabled}
      onClick=${(event) => (event.target.value = "")} onChange=${(event) => take(event.target.files)} />`;
}

/** Have files that are dropped anywhere taken, rather than shown by the browser. */
function useFilesHeldOver(setOver, take) {
  const latest = useRef();
  latest.current = take;
  useEffect(() => {
    const holds = (event) => event.dataTransfer?.types.includes("Files");
    const over = (event) => holds(event) && (event.preventDefault(), setOver(true));
    const leave = (event) => !event.relatedTarget && setOver(false);
    const drop = (event) => {
      if (!holds(event)) return;
      event.preventDefault();
      setOver(false);
      latest.current(event.dataTransfer.files);
    };
    const heard = { dragover: over, dragleave: leave, drop };
    for (const [name, each] of Object.entries(heard)) document.addEventListener(name, each);
    return () => Object.entries(heard).forEach(([name, each]) => document.removeEventListener(name, each));
  }, []);
}

/** How much of the file has gone. */
function Going({ gone, of, stop }) {
  const button = useRef(null);
  useEffect(() => button.current?.focus(), []); // what was pressed is gone
  return html`<div class="going">
    <label for="going">Sending</label>
    <progress id="going" max=${of} value=${gone}></progress>
    <p class="amount">${gone < of ? `${size(gone)} of ${size(of)}, ${percent(gone / of)}` : "All of it is sent; the server takes it in…"}</p>
    <button type="button" class="quiet" ref=${button} onClick=${stop}>Stop</button>
  </div>`;
}

/** Why it was not taken, and the way on. */
function Refused({ problem, file }) {
  const shown = useRef(null);
  useEffect(() => shown.current?.focus(), [problem]);
  return html`<div class="refused" tabindex="-1" ref=${shown}>
    <${Trouble} problem=${problem} />
    ${file && !problem.moved && html`<p>${nextStep(problem)} ${file.name} is kept here.</p>`}
  </div>`;
}

/** What to do about a file that was not taken. */
function nextStep({ status, stopped }) {
  if (MENDABLE.includes(status)) return "Nothing of it was done. Mend it, and send it again.";
  if (status) return "Nothing of it was done. Send it again in a while.";
  if (stopped) return "Send it again if you want it.";
  return "Send it again: should it have come in before, it is not done twice.";
}

/** The text of a file that is small enough to be mended on the page. */
function Mend({ file }) {
  const id = useId();
  const [text, setText] = useState(file.text);
  useEffect(() => {
    if (text === undefined && file.file.size <= MOST_MENDED) file.file.text().then(setText, () => {});
  }, [file.file]);
  if (file.file.size > MOST_MENDED) return html`<p>Mend it in your editor, save it, and choose it once more.</p>`;
  if (text === undefined) return null;
  const change = (event) => {
    setText(event.target.value);
    chosen.value = { ...file, text: event.target.value };
  };
  return html`<div class="field mend">
    <label for=${id}>Mend it here, or in your editor and choose it once more</label>
    <textarea id=${id} rows="8" wrap="off" spellcheck=${false} value=${text} onInput=${change}></textarea>
  </div>`;
}

/** Raises a Problem if a file is not there any more as it was chosen. */
async function readable(file, name) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    const problem = new Problem(0, { detail: `${name} was changed or moved since you chose it. Choose it once more.` });
    throw Object.assign(problem, { moved: true });
  }
}

/**
 * Hand in a file; its job. Where an answer was lost it may be in: it is sent again under the same key, which makes no
 * second job of it. What broke off on its way is ended first, as nothing of it ran, and goes under a new key.
 */
async function handIn(path, body, key, how) {
  const fresh = () => (key.current = newKey());
  const send = () => upload(path, body, { ...how, headers: { ...how.headers, "Idempotency-Key": key.current ?? fresh() } });
  try {
    return await send();
  } catch (error) {
    if (error.status === 409 && error.told.batch_id) {
      const before = await endedOrIn(`/api/batches/${error.told.batch_id}`);
      if (before.submitted_at) return before;
      fresh();
      return await send();
    }
    if (error.status && error.status < 500) key.current = null; // it was refused: the next one is another wish
    throw error;
  }
}

/** The job of an upload whose end was not seen: it is in, or is ended now. */
async function endedOrIn(path) {
  const job = await ask(path);
  return job.submitted_at || job.completed_at ? job : ask(`${path}/cancel`, { method: "POST" });
}
