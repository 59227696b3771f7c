// The audit log: who did what, and the head of its chain.
import { all, get } from "../lib/api.js"
import { exactly } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { go } from "../lib/router.js"
import { me } from "../lib/session.js"
import { ACTIONS } from "../settings/audit_actions.js"
import { Failed, Listing, Name, Section, useList } from "../settings/parts.js"
import { Data } from "../ui/json.js"
import { Code, Dialog, Empty, Head, Id, Problem, Time, useRead } from "../ui/parts.js"

/** @param {{params: URLSearchParams}} props */
export function Page({ params }) {
  const filters = { action: params.get("action") ?? "", actor_user_id: params.get("actor_user_id") ?? "" }
  const list = useList("audit-logs", { ...filters, limit: 50 })
  const members = useRead((signal) => all(`orgs/${me.get()?.org_id}/members`, signal), [])
  const [open, setOpen] = useState(/** @type {any} */ (null))
  const names = new Map((members.data ?? []).map((member) => [member.user_id, member.login]))
  const filter = (/** @type {Partial<typeof filters>} */ changed) => go("/audit", { ...filters, ...changed })
  const isKnown = filters.actor_user_id === "" || names.has(filters.actor_user_id)
  return html`<${Head} title="Audit log" />
    <div class="page">
      <p class="lead">What was done in the organization, by whom and from where. Entries are never changed; each has the hash of the one before it.</p>
      <div class="filter-row">
        <div><label for="audit-action">Action</label><select id="audit-action" class="small" value=${filters.action} onChange=${(/** @type {any} */ event) => filter({ action: event.target.value })}>
          <option value="">All actions</option>${ACTIONS.map((action) => html`<option key=${action} value=${action}>${action}</option>`)}</select></div>
        <div><label for="audit-actor">Member</label><select id="audit-actor" class="small" value=${filters.actor_user_id} onChange=${(/** @type {any} */ event) => filter({ actor_user_id: event.target.value })}>
          <option value="">Everybody</option>${!isKnown && html`<option value=${filters.actor_user_id}>${filters.actor_user_id}</option>`}
          ${[...names].map(([id, login]) => html`<option key=${id} value=${id}>${login}</option>`)}</select></div>
      </div>
      <${Problem} error=${members.error} onRetry=${members.reload} />
      <${Listing} list=${list} label="Audit log" id=${(/** @type {any} */ entry) => String(entry.seq)} columns=${columns(names, setOpen)}
        empty=${html`<${Empty} icon="audit" title="No entries"><p>${filters.action || filters.actor_user_id ? "No entry fits these filters." : "Nothing was done yet."}</p></${Empty}>`} />
      ${list.rows !== null && html`<${Chain} />`}
    </div>
    ${open && html`<${Entry} entry=${open} names=${names} onClose=${() => setOpen(null)} />`}`
}

/** @param {any} actor @param {Map<string, string>} names */
function actorOf(actor, names) {
  if (actor.type === "operator") return "the operator"
  if (actor.type === "unknown") return "unknown"
  const user = names.get(actor.user_id) ?? (actor.user_id ? `user …${actor.user_id.slice(-8)}` : "")
  if (actor.type === "end_user") return `end user ${actor.end_user_id}`
  return actor.type === "api_key" ? `${user}, by API key …${(actor.api_key_id ?? "").slice(-8)}` : user
}

/** @param {Map<string, string>} names @param {(entry: any) => void} show @returns {import("../settings/parts.js").Column[]} */
const columns = (names, show) => [
  { title: "Action", isTitle: true, cell: (entry) => html`<button type="button" class="link" onClick=${() => show(entry)}>${entry.action}</button>` },
  { title: "By", cell: (entry) => html`<${Name} text=${actorOf(entry.actor, names)} />` },
  { title: "Target", cell: (entry) => entry.target === null ? "–" : html`<span class="sub">${entry.target.type}</span> <${Name} class="mono" text=${targetOf(entry.target, names)} />` },
  { title: "From", class: "nowrap", cell: (entry) => entry.ip ?? "–" },
  { title: "When", class: "nowrap", cell: (entry) => html`<${Time} at=${entry.created_at} />` },
]

/** @param {{type: string, id: string}} target @param {Map<string, string>} names */
const targetOf = ({ id }, names) => names.get(id) ?? (/^[0-9a-f-]{36}$/.test(id) ? `…${id.slice(-8)}` : id)

/** @param {{entry: any, names: Map<string, string>, onClose: () => void}} props */
const Entry = ({ entry, names, onClose }) => html`<${Dialog} title=${entry.action} onClose=${onClose}><div>
  <p>${exactly(entry.created_at)}, number ${entry.seq}, by <${Name} text=${actorOf(entry.actor, names)} /></p>
  ${entry.target && html`<p class="faint">${entry.target.type} <${Id} id=${entry.target.id} /></p>`}
  <${Data} value=${entry.details} label="Details" /><${Data} value=${entry} label="Entry" /></div></${Dialog}>`

/** The newest entry of the chain, for somebody else to keep. */
function Chain() {
  const { data, error, reload } = useRead((signal) => get("audit-logs/head", {}, signal), [])
  return html`<${Section} title="Chain" about="Keep the number and hash of the newest entry elsewhere. The operator checks the chain against them with arkloop audit verify, which names the first entry that is missing or was changed.">
    ${data === null ? html`${error && html`<${Failed} error=${error} onRetry=${reload} />`}`
      : html`<${Problem} error=${error} onRetry=${reload} /><${Code} label=${`Entry ${data.seq}`} text=${`${data.seq} ${data.hash}`} />`}</${Section}>`
}
