// The inbox: all that somebody was told, and what is new, as it comes.

import { html, useEffect, useRef } from "./html.js";
import { Deed, For, More, Nothing, Trouble, Waiting } from "./parts.js";
import { lineOf, linkOf } from "./bell.js";
import { useDeed, usePages } from "./data.js";
import { heard, isRead, line, markAllRead, markRead, read, unread, useNotices } from "./notices.js";
import { useStore } from "./store.js";
import { moment, plural } from "./words.js";

const MOST_NEWER = 100; // heard since the list was asked for; then it is asked for again

export default function Notices() {
  return html`<h1>Notices</h1><${For} why="Log in to see your notices."><${Inbox} /><//>`;
}

const BY_BROWSERS = /fetch|network|load failed/i; // what they say when nobody answers, which tells people nothing

/** Why notices do not come, as the server says it. */
const whyOf = ({ state, was, reason }) => (state !== "open" && was && reason && !BY_BROWSERS.test(reason) ? reason : "");

function Inbox() {
  const pages = usePages("/api/notifications/inbox");
  const how = useStore(line);
  const told = useStore(heard);
  const readNow = useStore(read);
  const top = useRef(null);
  useNotices((notice) => notice || pages.again());
  const newest = pages.items?.[0]?.notification.cursor ?? 0;
  const newer = told.filter(({ cursor }) => cursor > newest);
  useEffect(() => {
    if (newer.length > MOST_NEWER) pages.again();
  }, [newer.length > MOST_NEWER]);
  const items = pages.items && [...newer.map((notification) => ({ notification, read: false })), ...pages.items];
  return html`<p role="status" class="quiet">${lineOf(how)} ${whyOf(how)}</p>
    <p class="choices">
      <a href="/notices/preferences">What you are told live</a>
      <a href="/notices/webhooks">Webhooks</a>
    </p>
    <div class="unread" tabindex="-1" ref=${top}><${Unread} done=${() => top.current.focus()} /></div>
    <${Trouble} problem=${pages.problem} again=${pages.again} />
    ${!items && !pages.problem && html`<${Waiting} />`}
    ${items?.length === 0 &&
    html`<${Nothing} title="You have no notices yet">
      <p>When something becomes of your orders, sales or jobs, it is told here. <a href="/">Reserve a ticket</a>, for instance.</p>
    <//>`}
    <ul class="notices">
      ${items?.map(
        (item) =>
          html`<${Notice} key=${item.notification.id} notice=${item.notification} isNew=${!item.read && !isRead(item.notification, readNow)} />`,
      )}
    </ul>
    <${More} pages=${pages} />`;
}

/** How many are unread, and how to be done with them. */
function Unread({ done }) {
  const count = useStore(unread);
  const [all, busy, problem] = useDeed(async () => {
    await markAllRead();
    done();
  });
  if (count === null) return null;
  return html`<p class="choices">
      <strong role="status">${count ? `${plural(count, "notice is", "notices are")} unread.` : "Nothing is unread."}</strong>
      ${count > 0 && html`<${Deed} class="quiet small" busy=${busy} onClick=${all}>Mark all as read<//>`}
    </p>
    <${Trouble} problem=${problem} />`;
}

function Notice({ notice, isNew }) {
  const box = useRef(null);
  const link = linkOf(notice);
  const [mark, busy, problem] = useDeed(async () => {
    await markRead(notice);
    box.current?.focus(); // what was pressed is gone
  });
  const text = `notice-${notice.id}`;
  return html`<li class=${isNew ? "new" : ""} tabindex="-1" ref=${box}>
    <p id=${text}>${isNew && html`<span class="badge">New</span> `}${notice.text}</p>
    <p class="choices">
      <small>${moment(notice.at)}</small>
      ${link && html`<a href=${link.path} aria-describedby=${text} onClick=${() => isNew && markRead(notice).catch(() => {})}>${link.words}</a>`}
      ${isNew && html`<${Deed} class="quiet small" busy=${busy} aria-describedby=${text} onClick=${mark}>Mark as read<//>`}
    </p>
    <${Trouble} problem=${problem} />
  </li>`;
}
