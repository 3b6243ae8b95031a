// What somebody is told live, and over which sort of connection.

import { html, useEffect, useState } from "./html.js";
import { Deed, For, Told, Trouble, Waiting } from "./parts.js";
import { ask } from "./ask.js";
import { useData, useDeed } from "./data.js";
import { KINDS } from "./notice_kinds.js";

const CHANNELS = [
  ["websocket", "WebSocket"],
  ["sse", "Server-sent events"],
  ["poll", "Long-polling"],
];

export default function Preferences() {
  return html`<p><a href="/notices">‹ Notices</a></p>
    <h1>What you are told live</h1>
    <${For} why="Log in to choose what you are told."><${Form} /><//>`;
}

const same = (one, other) => CHANNELS.every(([channel]) => [...(one[channel] ?? [])].sort().join() === [...(other[channel] ?? [])].sort().join());

function Form() {
  const path = "/api/notifications/preferences";
  const { data, problem, again, set } = useData(path);
  const [muted, setMuted] = useState(null);
  const [said, setSaid] = useState("");
  useEffect(() => {
    if (data && !muted) setMuted(data.muted);
  }, [data]);
  const [save, busy, refused] = useDeed(async () => {
    setSaid("");
    const saved = await ask(path, { method: "PUT", json: { muted } });
    set(saved);
    setSaid("Saved. It holds at once, in all of your tabs and programs.");
  });
  if (!muted) return problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`;
  const change = (channel, kind, wanted) => {
    const others = (muted[channel] ?? []).filter((each) => each !== kind);
    setMuted({ ...muted, [channel]: wanted ? others : [...others, kind] });
    setSaid("");
  };
  const submit = (event) => {
    event.preventDefault();
    save();
  };
  return html`<p>Pages and programs are told over whichever sort of connection they have. What you do not want is not told
      there, nor by the bell of this page; in your inbox it is all the same.</p>
    <form class="wide" onSubmit=${submit}>
      <table class="grid">
        <thead>
          <tr><th scope="col">What</th>${CHANNELS.map(([, name]) => html`<th scope="col">${name}</th>`)}</tr>
        </thead>
        <tbody>
          ${KINDS.map(
            ([kind, words]) => html`<tr>
              <th scope="row">${words}</th>
              ${CHANNELS.map(
                ([channel, name]) => html`<td>
                  <input type="checkbox" aria-label="${words}: ${name}" checked=${!muted[channel]?.includes(kind)}
                    onChange=${(event) => change(channel, kind, event.target.checked)} />
                </td>`,
              )}
            </tr>`,
          )}
        </tbody>
      </table>
      <${Trouble} problem=${refused} />
      <div class="choices">
        <${Deed} type="submit" busy=${busy}>Save<//>
        <${Told}>${said || (same(muted, data.muted) ? "" : "Not saved yet.")}<//>
      </div>
    </form>`;
}
