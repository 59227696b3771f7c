// What operators do to an organization: refuse all of its credentials, and accept them again.
import { post, segment } from "../lib/api.js"
import { html, useState } from "../lib/html.js"
import { me } from "../lib/session.js"
import { FormBox, TextField, useForm } from "../settings/fields.js"
import { Confirm } from "../settings/parts.js"
import { Badge, Button, Dialog, Foreign, Time } from "../ui/parts.js"

/** @typedef {{org_id: string, name: string, suspended_at: string | null}} Org */

/**
 * Offer the actions of a list of organizations.
 * @param {() => void} reload
 * @returns {{cell: (row: Org) => any, note: any, dialogs: any}}
 */
export function useOrgActions(reload) {
  const [said, setSaid] = useState(/** @type {any} */ (""))
  const [suspending, setSuspending] = useState(/** @type {Org | null} */ (null))
  const [resuming, setResuming] = useState(/** @type {Org | null} */ (null))
  const done = (/** @type {Org} */ org, /** @type {string} */ what) => {
    setSaid(html`<${Foreign} text=${org.name} /> ${what}`)
    setSuspending(null)
    reload()
  }
  const resume = async (/** @type {Org} */ org, /** @type {import("../lib/api.js").Sending} */ sending) => {
    await post(`operator/orgs/${segment(org.org_id)}:resume`, undefined, sending)
    done(org, "is resumed; its queued runs start.")
  }
  const cell = (/** @type {Org} */ org) => org.suspended_at !== null
    ? html`<${Button} class="small" aria-label=${`Resume ${org.name}`} onClick=${() => setResuming(org)}>Resume</${Button}>`
    : org.org_id !== me.get()?.org_id && html`<${Button} kind="quiet" class="small danger-text" aria-label=${`Suspend ${org.name}`} onClick=${() => setSuspending(org)}>Suspend</${Button}>`
  const note = html`<div role="status">${said && html`<p class="note">${said}</p>`}</div>`
  const dialogs = html`
    ${suspending && html`<${Suspension} org=${suspending} onClose=${() => setSuspending(null)} onDone=${() => done(suspending, "is suspended.")} />`}
    ${resuming && html`<${Confirm} title="Resume this organization?" action="Resume" kind="primary" onClose=${() => setResuming(null)} run=${(/** @type {import("../lib/api.js").Sending} */ sending) => resume(resuming, sending)}>
      <p><${Foreign} text=${resuming.name} /></p><p>Its credentials are accepted again, and its queued runs start.</p></${Confirm}>`}`
  return { cell, note, dialogs }
}

/** @param {{org: Org, onClose: () => void, onDone: () => void}} props */
function Suspension({ org, onClose, onDone }) {
  const form = useForm({ reason: "" }, async ({ reason }, sending) => {
    await post(`operator/orgs/${segment(org.org_id)}:suspend`, { reason: reason.trim() }, sending)
    onDone()
  })
  return html`<${Dialog} title="Suspend this organization?" onClose=${onClose}>
    <p><${Foreign} text=${org.name} /></p>
    <p>All of its credentials are refused within seconds, its streams end, and runs that are executed are cancelled. Queued and waiting runs stay. Nothing is revoked.</p>
    <${FormBox} form=${form} action="Suspend" onCancel=${onClose} isReady=${form.values.reason.trim() !== ""}>
      <${TextField} form=${form} name="reason" label="Reason" autofocus maxlength="500" hint="For operators, and for the audit log of the organization." /></${FormBox}></${Dialog}>`
}

/** Whether the organization is suspended. @param {{org: Org}} props */
export const Suspended = ({ org }) => org.suspended_at !== null
  && html`<span class="sub"><${Badge} status="suspended" /> <${Time} at=${org.suspended_at} /></span>`
